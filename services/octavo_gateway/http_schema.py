"""OpenAPI of the bodies that are decoded by hand, so that errors can name their fields."""

from dataclasses import dataclass

import msgspec
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, Reference, RequestBody, Schema

from octavo_gateway.openai_fields import CHAT_NEUTRAL, COMPLETION_NEUTRAL, ChatBody, CompletionBody

_AS_OPENAI = "as in OpenAI's API"


def operation_with(kind: type[msgspec.Struct]) -> type[Operation]:
    """Return the operation of a route that takes a body of this kind."""

    @dataclass
    class BodyOperation(Operation):
        def __post_init__(self) -> None:
            self.request_body = _body(kind, frozenset(), None)

    return BodyOperation


def _body(kind: type[msgspec.Struct], refused: frozenset[str], description: str | None) -> RequestBody:
    served = [item.name for item in msgspec.structs.fields(kind) if item.name not in refused]
    required = [item.name for item in msgspec.structs.fields(kind) if item.required]
    properties: dict[str, Reference | Schema] = {name: Schema(description=description) for name in served}
    schema = Schema(type=OpenAPIType.OBJECT, properties=properties, required=required)
    return RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


@dataclass
class ChatOperation(Operation):
    """Names the fields that the chat route serves."""

    def __post_init__(self) -> None:
        self.request_body = _body(ChatBody, frozenset(CHAT_NEUTRAL), _AS_OPENAI)


@dataclass
class CompletionOperation(Operation):
    """Names the fields that the completion route serves."""

    def __post_init__(self) -> None:
        self.request_body = _body(CompletionBody, frozenset(COMPLETION_NEUTRAL), _AS_OPENAI)
