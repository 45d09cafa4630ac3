"""Whatever the text, reading it gives a configuration or a `ConfigError` with places inside the text."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router.catalog import Catalog
from router.config import ConfigError, Loaded, Problem, parse
from router.errors import ProviderUnavailable, UnknownModel
from router.report import report

WORDS = st.sampled_from(
    [
        *("server", "heartbeat", "body_limit", "cors", "allow_origins", "shutdown", "15s", "1MiB", "https://a.b", "*"),
        *("providers", "protocol", "openai", "mock", "base_url", "api_key", "headers", "options", "a", "b"),
        *("models", "targets", "target", "a/x", "b/y", "timeouts", "idle", "total", "plugins", "auth"),
        *("${A}", "${NONE}", "${B:-c}", "$${", "${", "<<", "true", "null", "0", "-1", "1.5", "yes"),
    ]
)
SCALARS = st.one_of(WORDS, st.text(max_size=8), st.integers(), st.booleans(), st.none(), st.floats())
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=5),
    max_leaves=25,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "server": st.dictionaries(st.sampled_from(("heartbeat", "body_limit", "cors", "shutdown")), TREES),
        "providers": st.dictionaries(
            WORDS,
            st.dictionaries(
                st.sampled_from(("protocol", "base_url", "api_key", "models", "timeouts", "options")), TREES
            )
            | TREES,
        ),
        "models": st.dictionaries(WORDS, st.fixed_dictionaries({"targets": st.lists(WORDS)}) | TREES),
        "plugins": st.lists(TREES),
    },
)
LINES = st.lists(st.text(alphabet="ab:-[]{}\"'#&*!|>%@`? \t\n${}<~,0", max_size=30), max_size=8).map("\n".join)


def read(text: str) -> Loaded | tuple[Problem, ...]:
    try:
        return parse(text, "c.yaml", {"A": "1"}, protocols=["openai", "mock"], plugins=["auth"])
    except ConfigError as error:
        return error.problems


def reads_or_tells(text: str) -> None:
    found = read(text)
    if isinstance(found, tuple):
        check_problems(found, len(text.splitlines()) + 1)
        return
    assert report(found.config)
    catalog = Catalog(found.config)
    for listed in catalog.models():
        if listed.available:
            assert catalog.resolve(listed.id)
        else:
            with pytest.raises(ProviderUnavailable):
                catalog.resolve(listed.id)


def check_problems(problems: tuple[Problem, ...], lines: int) -> None:
    assert problems
    assert list(problems) == sorted(set(problems))
    for problem in problems:
        assert 1 <= problem.line <= lines, problem
        assert problem.column >= 1, problem
        assert problem.message, problem
        assert "\n" not in problem.message, problem


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_any_tree_is_read_or_told_wrong(tree: object) -> None:
    reads_or_tells(yaml.safe_dump(tree, allow_unicode=True))


@settings(max_examples=150, deadline=None)
@given(ROWS)
def test_anything_shaped_like_a_configuration_is_read_or_told_wrong(tree: object) -> None:
    reads_or_tells(yaml.safe_dump(tree, allow_unicode=True, default_flow_style=None))


@settings(max_examples=200, deadline=None)
@given(LINES | st.text(max_size=60))
@example("a: &a\nb: *a\n? *a\n: 1")
@example("%TAG ! tag:x,2000:\n---\na: !x 1")
@example("? |\n  a\n: b")
@example("\u2028\u0085: [")
@example("'" * 7)
@example("- " * 200)
@example("[" * 200)
@example("{a: " * 200)
@example("&a " * 3 + "x")
@example("!!binary x")
@example("a: !<> b")
@example("--- >\n \ufeff")
def test_any_text_is_read_or_told_wrong(text: str) -> None:
    reads_or_tells(text)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(("", "-", "1", "15s", "x/y")), st.text(min_size=1, max_size=300))
def test_an_unknown_name_is_told_in_a_short_line(prefix: str, name: str) -> None:
    catalog = Catalog(parse("models: {chat: {targets: [mock/echo]}}", "c.yaml", {}).config)
    with pytest.raises(UnknownModel) as caught:
        catalog.resolve(f"{prefix}-{name}")
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message
