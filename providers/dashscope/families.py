"""What is known of DashScope's model families: their service path, and how they think. Data; it may be incomplete.

A model that no row covers is treated as a plain text model; what is wrong with that is learned from the vendor's
errors (`providers.dashscope.lessons`). Sources: Alibaba's pages "DashScope API reference", "Deep thinking" and
"Partial mode".
"""

import re
from typing import Final, Literal, TypeAlias

from msgspec import Struct

Path: TypeAlias = Literal["text", "multimodal"]
"""The service a model is bound to. Each model answers on exactly one of the two."""

PATHS: Final[dict[Path, str]] = {
    "text": "/services/aigc/text-generation/generation",
    "multimodal": "/services/aigc/multimodal-generation/generation",
}

ThinkingMode: TypeAlias = Literal["unknown", "never", "off", "on", "always"]
"""`off` and `on` can be switched with `enable_thinking` and say which is the default."""


class Family(Struct, frozen=True, kw_only=True):
    names: re.Pattern[str]
    """Matches the beginning of the model names it covers, in lower case."""
    path: Path = "text"
    thinking: ThinkingMode = "unknown"
    stream_only: bool = False
    takes_effort: bool = False
    """Has the parameter `reasoning_effort`. The others take a budget of tokens only."""
    keeps_reasoning: bool = False
    """Reads the reasoning of earlier turns unless `preserve_thinking` is false."""
    partial: bool = True
    """Goes on with a last message of the assistant's that is marked `partial`, when it does not think."""


UNKNOWN: Final = Family(names=re.compile(""), partial=False)

# The first row that matches counts.
FAMILIES: Final[tuple[Family, ...]] = (
    Family(names=re.compile(r"qwen-mt"), thinking="never", partial=False),
    Family(
        names=re.compile(r"qwen3\.8-max"),
        path="multimodal",
        thinking="on",
        takes_effort=True,
        keeps_reasoning=True,
    ),
    Family(names=re.compile(r"qvq"), path="multimodal", thinking="always", stream_only=True),
    Family(names=re.compile(r"qwq"), thinking="always", stream_only=True),
    Family(names=re.compile(r"qwen[\d.]*-omni"), path="multimodal", stream_only=True, partial=False),
    Family(names=re.compile(r"qwen3-vl-.*-thinking"), path="multimodal", thinking="always"),
    Family(names=re.compile(r"qwen3-vl-.*-instruct"), path="multimodal", thinking="never"),
    Family(names=re.compile(r"qwen3-vl"), path="multimodal", thinking="off"),
    Family(names=re.compile(r"qwen[\d.]*-vl"), path="multimodal"),
    Family(names=re.compile(r"qwen[\d.]*-(audio|ocr|asr)"), path="multimodal", partial=False),
    Family(names=re.compile(r"qwen3\.5"), path="multimodal", thinking="on"),
    Family(names=re.compile(r"qwen3\.([67]-plus|6-flash)"), path="multimodal", thinking="on"),
    Family(names=re.compile(r"qwen3\.[6-9]"), thinking="on"),
    Family(names=re.compile(r"qwen3-coder|qwen-(max|long|coder|math)|qwen-plus-character|qwen[12]"), thinking="never"),
    Family(names=re.compile(r"qwen3-max|qwen-(plus|flash|turbo)"), thinking="off"),
    Family(names=re.compile(r"qwen3-.*-thinking"), thinking="always", stream_only=True),
    Family(names=re.compile(r"qwen3-.*-instruct"), thinking="never"),
    # the open models of Qwen3, named by their size
    Family(names=re.compile(r"qwen3-\d"), thinking="on", stream_only=True),
)


def family_of(model: str) -> Family:
    name = model.lower()
    return next((family for family in FAMILIES if family.names.match(name)), UNKNOWN)
