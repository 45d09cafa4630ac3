"""The JSON body of an operator's request as a Struct, with errors that name the field."""

import re
from collections.abc import Iterator
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request
from msgspec import DecodeError, Struct, ValidationError, inspect

from router.errors import InvalidRequest
from router.nearest import did_you_mean

T = TypeVar("T", bound=Struct)
_PLACE: Final = re.compile(r" - at (?:`key` in )?`\$?\.?([^`]*)`$")
_MISSING: Final = re.compile(r"^Object missing required field `([^`]*)`$")
_UNKNOWN: Final = re.compile(r"^Object contains unknown field `([^`]*)`$")
_BAD_VALUE: Final = re.compile(r"^Invalid (?:enum )?value (.*)$", re.DOTALL)
_TYPES: Final = re.compile(r"`([^`]*)`")
_STEP: Final = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_WORDS: Final = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
_LONGEST_QUOTE: Final = 60


async def json_body(request: Request[Any, Any, Any], type_: type[T], *, required: bool = False) -> T:
    """The body as a `type_`; no body at all is `{}`. `required`: it must not be forgotten, for what it leaves out is
    removed. Raises `InvalidRequest`."""
    body = await request.body()
    if required and not body:
        words = "a body is required: what it leaves out is removed, with `{}` everything"
        raise InvalidRequest(words, code="missing_required_parameter")
    try:
        return msgspec.json.decode(body or b"{}", type=type_)
    except ValidationError as error:
        raise _invalid(str(error), type_) from None
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", code="invalid_json") from None


def _invalid(message: str, type_: type[Struct]) -> InvalidRequest:
    """msgspec's message in our words; `param` is the place: `budgets[0].amount`."""
    found = _PLACE.search(message)
    place = found[1] if found else ""
    problem = message[: found.start()] if found else message
    if missing := _MISSING.match(problem):
        place = f"{place}.{missing[1]}".lstrip(".")
        return InvalidRequest(f"`{place}` is required", code="missing_required_parameter", param=place)
    if unknown := _UNKNOWN.match(problem):
        known = () if place else sorted(field.encode_name for field in msgspec.structs.fields(type_))
        near = did_you_mean(unknown[1], known)
        listed = f" (known: {', '.join(known)})" if known else ""
        place = f"{place}.{unknown[1]}".lstrip(".")[:_LONGEST_QUOTE]
        return InvalidRequest(f"unknown field `{place}`{near}{listed}", code="unknown_parameter", param=place)
    if wrong := _BAD_VALUE.match(problem):
        words = _words_at(type_, place)
        known_words = f" (known: {', '.join(words)})" if words else ""
        problem = f"{wrong[1][:_LONGEST_QUOTE]} is not a known value{known_words}"
    else:
        problem = _TYPES.sub(lambda types: " or ".join(_WORDS.get(one, one) for one in types[1].split(" | ")), problem)
        problem = problem[:1].lower() + problem[1:]
    return InvalidRequest(f"`{place}`: {problem}" if place else f"the body: {problem}", param=place or None)


def _words_at(type_: type[Struct], place: str) -> list[str]:
    """The words that may stand at that place of a body."""
    found = _choices(inspect.type_info(type_))
    for step in _STEP.findall(place):
        found = [choice for outer in found for inner in _inside(outer, step) for choice in _choices(inner)]
    return [str(word) for each in found if isinstance(each, inspect.LiteralType) for word in each.values]


def _inside(outer: inspect.Type, step: str) -> Iterator[inspect.Type]:
    match outer:
        case inspect.StructType(fields=fields):
            yield from (field.type for field in fields if field.encode_name == step)
        case inspect.CollectionType(item_type=item):
            yield item
        case inspect.DictType(value_type=value):
            yield value


def _choices(type_: inspect.Type) -> list[inspect.Type]:
    return list(type_.types) if isinstance(type_, inspect.UnionType) else [type_]
