"""Examples of JSON Schemas are instances of them."""

from typing import Any

import pytest

from router.json_example import example

TREE = {
    "$ref": "#/$defs/Node",
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}},
            "required": ["name", "next"],
        }
    },
}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({}, None),
        ({"type": "string"}, "text"),
        ({"type": "string", "minLength": 6}, "textxx"),
        ({"type": "string", "maxLength": 2}, "te"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"type": "integer"}, 0),
        ({"type": "integer", "minimum": 0.5}, 1),
        ({"type": "integer", "exclusiveMinimum": 3}, 4),
        ({"type": "integer", "maximum": -2}, -2),
        ({"type": "integer", "exclusiveMaximum": 0}, -1),
        ({"type": "integer", "minimum": 7, "multipleOf": 5}, 10),
        ({"type": "number", "exclusiveMinimum": 0}, 0.5),
        ({"type": "boolean"}, True),
        ({"type": "null"}, None),
        ({"type": ["null", "string"]}, "text"),
        ({"const": 5}, 5),
        ({"enum": ["red", "green"]}, "red"),
        ({"type": "integer", "default": 9}, 9),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, 0),
        ({"oneOf": [{"type": "null"}]}, None),
        ({"type": "array", "items": {"type": "string"}}, []),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, ["text", "text"]),
        (
            {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}, "minItems": 2},
            [0, "text"],
        ),
        ({"properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": "text"}),
        (
            {
                "$defs": {"A": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
                "allOf": [{"$ref": "#/$defs/A"}, {"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
            },
            {"a": 0, "b": True},
        ),
        ({"$ref": "#/$defs/gone"}, None),
        (True, None),
    ],
)
def test_example(schema: Any, value: Any) -> None:
    assert example(schema) == value


def test_a_schema_that_contains_itself_has_a_bounded_example() -> None:
    node = example(TREE)
    depth = 0
    while node:
        assert node["name"] == "text"
        node, depth = node["next"], depth + 1
    assert 1 <= depth <= 12


def test_a_schema_that_branches_into_itself_has_a_small_example() -> None:
    both = {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]}
    schema = {
        "$ref": "#/$defs/Node",
        "$defs": {"Node": {"type": "object", "properties": {"l": both, "r": both}, "required": ["l", "r"]}},
    }
    assert str(example(schema)).count("l") < 200


def test_a_schema_that_holds_itself_in_every_property_has_a_small_example() -> None:
    names = [str(i) for i in range(100)]
    schema = {"properties": {name: {"$ref": "#"} for name in names}, "required": names}
    assert len(str(example(schema))) < 100_000


def test_a_huge_string_or_list_is_not_made() -> None:
    assert len(example({"type": "string", "minLength": 10**12})) == 1000
    assert len(example({"type": "array", "items": {"type": "integer"}, "minItems": 10**12})) == 1000


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer", "minimum": "a"}, {"type": "object", "required": 5}, {"anyOf": 7}, {"allOf": 1}, {"enum": 5}],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="not a JSON Schema"):
        example(schema)
