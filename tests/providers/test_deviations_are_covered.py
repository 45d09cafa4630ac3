"""The known ways in which servers leave the protocols they claim to speak are numbered: each has a test that names it.

A transcript names its deviation in its folder (`quirk-41-index-always-zero`), a test in its docstring or the id of a
case (`quirk 41`). The numbers are 1 to 65: framing to 15, chunks to 35, reasoning to 39, tool calls to 55, errors.
"""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
HERE = Path(__file__).name


def named() -> dict[int, list[str]]:
    """Number → the transcripts and test modules that name it."""
    found: dict[int, list[str]] = {}
    for path in sorted((TESTS / "providers" / "transcripts").glob("*/quirk-*")):
        assert any(path.glob("upstream.*")), f"{path} has no recording"
        found.setdefault(int(path.name.split("-")[1]), []).append(path.name)
    for path in sorted(TESTS.rglob("test_*.py")):
        if path.name != HERE and "node_modules" not in path.parts:
            for number in re.findall(r"\bquirk (\d+)\b", path.read_text("utf-8")):
                found.setdefault(int(number), []).append(path.name)
    return found


@pytest.mark.parametrize("number", range(1, 66))
def test_every_deviation_has_a_test_that_names_it(number: int) -> None:
    assert named().get(number), f"no transcript and no test names quirk {number}"


SEEN = {
    1: rb"^data:\{",
    2: rb"\r[^\n]",
    3: rb"^:",
    4: rb"^data:\s*:",
    5: rb"^data: *$",
    6: rb"^: ping",
    7: rb"\}\n\n\Z",
    8: rb"[^\n]\Z",
    9: rb"[\x80-\xff]",
    10: rb"\xe2\x80\xa8",
    12: rb"^event:",
    13: rb"\[DONE\]\s+data: \{",
    15: rb"\A\s",
    16: rb'"prompt_filter_results"',
    17: rb'"content_filter_results"',
    19: rb'"finish_reason":"stop","usage"',
    20: rb'"x_groq"',
    23: rb'"total_tokens":560',
    24: rb'"delta":null',
    25: rb'"content":null',
    26: rb'"thinking"',
    28: rb'"finish_reason":""',
    36: rb'"reasoning_content".*"content"|"reasoning":"',
    37: rb"</?think>",
    43: rb'"id":""',
    44: rb'"id":"","type"',
    47: rb'"arguments":\{',
    48: rb'"arguments":(""|null)|"name":"\w+"\}',
    52: rb'"function_call"',
    53: rb"<tool_call>",
    54: rb"functions\.\w+:\d",
    55: rb"recipient_name",
    56: rb'"error"',
    60: rb"<html",
    61: rb"^event: ?error",
    62: rb'"base_resp"',
    63: rb"rrearage",
}
"""What the recording of a deviation must have in it, where bytes can tell."""


@pytest.mark.parametrize("number", sorted(SEEN))
def test_a_recording_has_the_deviation_it_is_named_for(number: int) -> None:
    folders = list((TESTS / "providers" / "transcripts").glob(f"*/quirk-{number:02}-*"))
    bodies = [body.read_bytes() for folder in folders for body in folder.glob("upstream.*")]
    assert any(re.search(SEEN[number], body, re.M) for body in bodies)
