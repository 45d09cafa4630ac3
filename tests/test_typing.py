"""The contracts as users see them: what users write, in `tests/typing/` and in the documentation, passes mypy."""

import re
import subprocess
import sys
from pathlib import Path

import plugins
import providers

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "tests" / "typing").glob("*.py"))
DOCUMENTS = (ROOT / "docs" / "write-a-plugin.md", ROOT / "docs" / "add-a-provider.md")


def check(*paths: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *map(str, paths)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_users_write_is_well_typed(tmp_path: Path) -> None:
    assert EXAMPLES
    written = list(EXAMPLES)
    for document in DOCUMENTS:
        blocks = re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.M | re.S)
        assert blocks
        module = tmp_path / f"{document.stem.replace('-', '_')}.py"
        module.write_text("\n".join(blocks), "utf-8")
        written.append(module)
    check(*written)


def test_the_built_in_providers_and_plugins_keep_the_contracts(tmp_path: Path) -> None:
    """They are loaded by name, which hides their types from mypy."""
    lines = ["from router.plugin import Plugin", "from router.provider import Provider"]
    for contract, table in (("Provider", providers.BUILT_IN), ("Plugin", plugins.BUILT_IN)):
        for name, place in table.items():
            module, _, kind = place.partition(":")
            lines += [
                f"from {module} import {kind} as {contract}_{name}",
                f"{name}: type[{contract}] = {contract}_{name}",
            ]
    written = tmp_path / "built_in.py"
    written.write_text("\n".join(lines), "utf-8")
    check(written)


def test_a_class_that_breaks_the_contract_is_refused(tmp_path: Path) -> None:
    """So that the test above could fail."""
    module = tmp_path / "wrong.py"
    module.write_text(
        "from router.call import Call\n"
        "from router.plugin import Plugin\n"
        "class Wrong:\n"
        "    async def stream(self, call: Call) -> None: ...\n"
        "plugin: Plugin = Wrong()\n",
        "utf-8",
    )
    checked = subprocess.run([sys.executable, "-m", "mypy", "--strict", str(module)], cwd=ROOT, capture_output=True)
    assert checked.returncode == 1
