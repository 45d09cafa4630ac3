"""What a handler reads by itself, for `/schema/openapi.json`: the body and the parameters of its query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIType
from msgspec import Struct

CURSOR = (
    Parameter("limit", "query", schema=Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=100, default=20)),
    Parameter("after", "query", schema=Schema(type=OpenAPIType.STRING)),
    Parameter("before", "query", schema=Schema(type=OpenAPIType.STRING)),
)


def described(
    body: type[Struct] | None = None, query: Sequence[Parameter] = (), *, required: bool = False
) -> type[Operation]:
    """The `operation_class` of a handler that reads such a body, and such parameters. `required`: the body is."""

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            if body is not None:
                media = {"application/json": OpenAPIMediaType(schema=_Inline(body))}
                self.request_body = RequestBody(media, required=required)
            if query:
                self.parameters = [*(self.parameters or []), *query]

    return Described


@dataclass
class _Inline(Schema):
    """The schema of a Struct, with those that it refers to in their places."""

    body: type[Struct] = Struct

    def __init__(self, body: type[Struct]) -> None:
        super().__init__()
        self.body = body

    def __hash__(self) -> int:
        return hash(self.body)

    def to_schema(self) -> dict[str, Any]:
        whole = msgspec.json.schema(self.body)
        inlined: dict[str, Any] = _inlined(whole, whole.get("$defs", {}))
        return inlined


def _inlined(node: Any, known: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, known) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(known[node["$ref"].rpartition("/")[2]], known)
    return {name: _inlined(value, known) for name, value in node.items() if name != "$defs"}
