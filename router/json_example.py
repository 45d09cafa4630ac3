"""The smallest value that a JSON Schema admits, for `mock` to answer with. Pure; knows no vendor.

Follows what structured outputs and tool parameters use of JSON Schema 2020-12. `pattern`, `not`, `if` and the
like are not looked at.
"""

from math import ceil
from typing import Any, Final

Schema = dict[str, Any]

MAX_DEPTH: Final = 12
"""How deep an example goes before it gives null: a schema may contain itself."""
MAX_VALUES: Final = 1000
"""How many values an example has before it gives null: a schema may contain itself many times over."""
MAX_LENGTH: Final = 1000
"""Characters or items that an example has at most, whatever the schema asks for."""

_FORMATS: Final = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "user@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def example(schema: Any) -> Any:
    """A value for `schema`: required properties only, the first of every choice, the least of every range.

    Raises `ValueError` for what is no JSON Schema.
    """
    try:
        return Example(schema).value(schema, MAX_DEPTH)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError("not a JSON Schema") from error


class Example:
    """One example in the making."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._values = 0

    def value(self, schema: Any, depth: int) -> Any:
        self._values += 1
        if not isinstance(schema, dict) or depth == 0 or self._values > MAX_VALUES:
            return None
        for word in ("const", "default"):
            if word in schema:
                return schema[word]
        if schema.get("enum"):
            return schema["enum"][0]
        if "$ref" in schema:
            return self.value(self._referred(schema["$ref"]), depth - 1)
        if schema.get("allOf"):
            return self.value(self._merged(schema), depth - 1)
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                return self._first(schema[word], depth - 1)
        match _kind(schema):
            case "object":
                properties = schema.get("properties", {})
                return {name: self.value(properties.get(name, {}), depth - 1) for name in schema.get("required", ())}
            case "array":
                given = schema.get("prefixItems", [])
                more = min(max(schema.get("minItems", 0) - len(given), 0), MAX_LENGTH)
                return [self.value(item, depth - 1) for item in [*given, *[schema.get("items", {})] * more]]
            case "string":
                text = _FORMATS.get(schema.get("format", ""), "text")
                return text.ljust(min(schema.get("minLength", 0), MAX_LENGTH), "x")[: schema.get("maxLength")]
            case "integer":
                return ceil(_number(schema, 1))
            case "number":
                return _number(schema, 0.5)
            case "boolean":
                return True
        return None

    def _first(self, options: list[Any], depth: int) -> Any:
        """The first option that is no null."""
        for option in options:
            value = self.value(option, depth)
            if value is not None:
                return value
        return None

    def _referred(self, ref: Any) -> Any:
        """What a reference within the document (`#/$defs/Step`) points to."""
        found = self._root
        for name in str(ref).removeprefix("#").strip("/").split("/"):
            name = name.replace("~1", "/").replace("~0", "~")
            if name:
                found = found.get(name) if isinstance(found, dict) else None
        return found

    def _merged(self, schema: Schema) -> Schema:
        whole: Schema = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"]:
            if isinstance(part, dict) and "$ref" in part:
                part = self._referred(part["$ref"])
            if isinstance(part, dict):
                for key, value in part.items():
                    if key == "properties":
                        value = {**whole.get(key, {}), **value}
                    elif key == "required":
                        value = [*whole.get(key, ()), *value]
                    whole[key] = value
        return whole


def _kind(schema: Schema) -> str | None:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), None)
    if isinstance(kind, str):
        return kind
    return "object" if "properties" in schema else "array" if "items" in schema else None


def _number(schema: Schema, step: float) -> float:
    multiple: float | None = schema.get("multipleOf")
    step = multiple or step
    least: float
    if "exclusiveMinimum" in schema:
        least = schema["exclusiveMinimum"] + step
    elif "minimum" in schema:
        least = schema["minimum"]
    else:
        least = min(0, schema.get("maximum", 0), schema.get("exclusiveMaximum", step) - step)
    return -(-least // multiple) * multiple if multiple else least
