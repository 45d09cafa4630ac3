"""Typed decoding that keeps the fields a format does not name, wherever they were found. Knows no format.

A Struct that forbids unknown fields decodes fastest. `Sieve` is the second try, for input that the Struct refused:
it moves what the Struct does not name into `Unknown`, a type that no JSON text can spell, so that a client cannot
reach it; what is left is then checked against the Struct as before.
"""

from typing import Any, ClassVar

import msgspec
from msgspec import Struct, inspect


class Unknown:
    """Fields of one JSON object that its Struct does not name, verbatim."""

    __slots__ = ("fields",)

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unknown) and other.fields == self.fields

    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Unknown({self.fields!r})"


class Node(Struct, forbid_unknown_fields=True, kw_only=True, gc=False):
    """One JSON object of a public format. `unknown` is filled by `Sieve` alone."""

    unknown: Unknown | None = None


class Opaque(Struct, forbid_unknown_fields=True, gc=False, tag_field="type", tag="opaque"):
    """The member of a tagged union that stands for every tag the others do not have."""

    fields: Unknown


class _Shape(Struct):
    """What may stand at one place: objects by tag (None: untagged), or a list of a shape."""

    tag_field: str | None = None
    objects: dict[str | None, dict[str, "_Shape | None"]] = {}
    opaque: bool = False
    items: "_Shape | None" = None


class Sieve:
    """Parts decoded JSON into what the Struct `cls` names and what it does not."""

    def __init__(self, cls: type[Struct]) -> None:
        self._shape = _shape(inspect.type_info(cls))

    def sift(self, value: Any) -> Any:
        """The value, rearranged so that `msgspec.convert` to the Struct keeps everything. Never raises on a
        value that has another form than the Struct's: telling what is wrong is the typed check's part."""
        return value if self._shape is None else _sifted(value, self._shape)


def _sifted(value: Any, shape: _Shape) -> Any:
    if type(value) is list:
        items = shape.items
        return value if items is None else [_sifted(item, items) for item in value]
    if type(value) is not dict:
        return value
    tag_field = shape.tag_field
    tag = None if tag_field is None else value.get(tag_field)
    if tag_field is not None and not isinstance(tag, str):
        return value
    named = shape.objects.get(tag)
    if named is None:
        return {"type": "opaque", "fields": Unknown(value)} if shape.opaque else value
    kept: dict[str, Any] = {}
    unknown: dict[str, Any] = {}
    for key, field in value.items():
        if key in named:
            inner = named[key]
            kept[key] = field if inner is None else _sifted(field, inner)
        elif key == tag_field:
            kept[key] = field
        else:
            unknown[key] = field
    if unknown:
        kept["unknown"] = Unknown(unknown)
    return kept


def _shape(info: inspect.Type) -> _Shape | None:
    """None where no Struct can stand."""
    shape = _Shape()
    for one in info.types if isinstance(info, inspect.UnionType) else (info,):
        if isinstance(one, inspect.ListType):
            shape.items = _shape(one.item_type)
        elif isinstance(one, inspect.StructType):
            shape.tag_field = one.tag_field
            if one.cls is Opaque:
                shape.opaque = True
                continue
            tag = one.tag if isinstance(one.tag, str) else None
            shape.objects[tag] = {f.encode_name: _shape(f.type) for f in one.fields if f.name != "unknown"}
    return shape if shape.objects or shape.opaque or shape.items is not None else None


def verbatim(value: Any) -> Any:
    """A decoded value as plain JSON data again, unknown fields in their places. Fields that are None are left out."""
    if isinstance(value, list):
        return [verbatim(item) for item in value]
    if isinstance(value, Opaque):
        return value.fields.fields
    if not isinstance(value, Struct):
        return value
    fields: dict[str, Any] = {}
    config = value.__struct_config__
    if config.tag_field is not None:
        fields[config.tag_field] = config.tag
    for name, key in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
        field = getattr(value, name)
        if isinstance(field, Unknown):
            fields.update(field.fields)
        elif field is not None and field is not msgspec.UNSET:
            fields[key] = verbatim(field)
    return fields
