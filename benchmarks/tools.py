"""The programs the benchmark needs besides this project: wrk, nginx and smg."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import Failed

HERE = Path(__file__).parent
SMG_VERSION = "1.13.0"
_SMG_FOLDER = HERE / ".venv-smg"


def program(name: str) -> str:
    """The path of `wrk` or `nginx`, installed from Debian's packages where that is possible."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    if found := shutil.which(name, path=path):
        return found
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Failed(f"`{name}` is not installed. On Debian and Ubuntu: sudo apt-get install wrk nginx")
    print(f"installing {name} …", file=sys.stderr, flush=True)
    _run("apt-get", "update", "-qq")
    _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", name)
    if found := shutil.which(name, path=path):
        return found
    raise Failed(f"`apt-get install {name}` has not brought `{name}`")


def smg() -> str:
    """The path of `smg`, in a virtual environment of its own: its dependencies are not ours."""
    found = _SMG_FOLDER / "bin" / "smg"
    wanted = _SMG_FOLDER / f".{SMG_VERSION}"
    if not (found.exists() and wanted.exists()):
        print(f"installing smg {SMG_VERSION} into {_SMG_FOLDER.name} …", file=sys.stderr, flush=True)
        _run(sys.executable, "-m", "venv", str(_SMG_FOLDER))
        _run(str(_SMG_FOLDER / "bin" / "pip"), "install", "--quiet", f"smg=={SMG_VERSION}")
        wanted.touch()
    return str(found)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise Failed(f"`{' '.join(command)}` failed:\n{(done.stderr or done.stdout)[-2000:]}")
