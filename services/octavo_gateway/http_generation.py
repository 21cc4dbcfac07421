"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/models``."""

from typing import Any

import msgspec
from litestar import Response, get, post

from octavo_gateway.admission import Admission
from octavo_gateway.call import Call
from octavo_gateway.fleet import FleetView
from octavo_gateway.front import Asked, FrontDesk
from octavo_gateway.http_request import AnyRequest, caller_of, read_body
from octavo_gateway.http_schema import ChatOperation, CompletionOperation
from octavo_gateway.http_stream import ClientGone, EventStream, unless_gone
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.openai import Kind
from octavo_gateway.request_record import CLIENT_CLOSED
from octavo_gateway.writing import ChunkReader, headers_of, whole_answer
from octavo_shared.clock import now_ms
from octavo_shared.messages.adapters import AdapterInfo, AdapterList, ListAdapters
from octavo_shared.telemetry import extract_context

_MODELS_PAGE = 200
_MODELS_MAX = 1_000


class ModelCard(msgspec.Struct, frozen=True):
    id: str
    owned_by: str
    created: int = 0
    object: str = "model"


class ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard]
    object: str = "list"


class GenerationRoutes:
    """The OpenAI side of the API; ``handlers`` are given to Litestar."""

    def __init__(self, front: FrontDesk, admission: Admission, identity: IdentityClient, fleet: FleetView) -> None:
        self._front = front
        self._admission = admission
        self._identity = identity
        self._fleet = fleet

    def handlers(self) -> list[Any]:
        @post("/v1/chat/completions", status_code=200, operation_class=ChatOperation)
        async def chat_completions(request: AnyRequest) -> Response[Any]:
            """Answer a conversation, whole or as server-sent events."""
            return await self._answer(request, Kind.CHAT)

        @post("/v1/completions", status_code=200, operation_class=CompletionOperation)
        async def completions(request: AnyRequest) -> Response[Any]:
            """Continue a text, whole or as server-sent events."""
            return await self._answer(request, Kind.COMPLETION)

        @get("/v1/models")
        async def models(request: AnyRequest) -> ModelList:
            """List the bases in the fleet and the adapters that this key may use."""
            return await self._models(request)

        return [chat_completions, completions, models]

    async def _answer(self, request: AnyRequest, kind: Kind) -> Response[Any]:
        at_ms = now_ms()
        credential = caller_of(request)
        self._admission.knock(credential)
        raw = await read_body(request)
        parent = extract_context({name.lower(): value for name, value in request.headers.items()})
        call = self._front.begin(self._admission.enter(at_ms), credential, Asked(raw, kind, "http"), parent)
        try:
            return await self._respond(request, call)
        except ClientGone:
            call.cancel()
            return Response(b"", status_code=CLIENT_CLOSED)
        except BaseException:
            call.cancel()
            raise

    async def _respond(self, request: AnyRequest, call: Call) -> Response[Any]:
        # Status and headers wait for the worker's Started, so that a failed cold load is a real 503.
        head = await unless_gone(request, call.head())
        headers = headers_of(head)
        if head.ask.is_stream:
            return EventStream(call, ChunkReader(call, head), headers)
        body = await unless_gone(request, whole_answer(call, head))
        return Response(body, status_code=200, headers=headers, media_type="application/json")

    async def _models(self, request: AnyRequest) -> ModelList:
        credential = caller_of(request)
        found: list[AdapterInfo] = []
        after = ""
        while len(found) < _MODELS_MAX:
            page = await self._identity.call(
                ListAdapters(credential=credential, after=after, num_max=_MODELS_PAGE), AdapterList
            )
            found.extend(page.adapters)
            if not (after := page.next_after):
                break
        bases = [ModelCard(name, "octavo") for name in sorted(set(self._fleet.bases().values()))]
        return ModelList(
            bases + [ModelCard(info.name, info.owner, info.latest.created_at_ms // 1000) for info in found]
        )
