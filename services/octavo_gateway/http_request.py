"""What routes read of a request: who calls, how a repetition is known again, which adapter it is about, the body."""

import asyncio
import uuid
from typing import Any, TypeVar

from litestar import Request
from litestar.exceptions import ClientException, InternalServerException

from octavo_gateway.bodies import decode_body
from octavo_gateway.credentials import credential_of
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.requests import Credential
from octavo_shared.references import parse_reference

_BODY_TIMEOUT_S = 10.0
_IDEMPOTENCY_CHARS_MAX = 128

AnyRequest = Request[Any, Any, Any]
T = TypeVar("T")


def caller_of(request: AnyRequest) -> Credential:
    """Return the caller's key; raises ``Unauthenticated`` when there is none of our form."""
    return credential_of(request.headers.get("authorization"))


def idempotency_key_of(request: AnyRequest) -> str:
    """Return the header ``Idempotency-Key``, or a fresh one: then a repeated request is a new one."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return uuid.uuid4().hex
    if not (0 < len(key) <= _IDEMPOTENCY_CHARS_MAX and key.isprintable()):
        raise InvalidRequest("Idempotency-Key", f"must hold 1 to {_IDEMPOTENCY_CHARS_MAX} printable characters")
    return key


def adapter_name(tenant: str, name: str) -> str:
    """Return ``tenant/name``; raises ``InvalidRequest`` when that is no adapter's name."""
    return parse_reference(f"{tenant}/{name}", "adapter").name


def revision_reference(tenant: str, name: str, revision: str | None) -> str:
    """Return the reference to a number, digest or alias (None: to none); raises ``InvalidRequest``."""
    if revision is None:
        return adapter_name(tenant, name)
    mark = "@" if revision.isdecimal() or revision.startswith("sha256:") else ":"
    return str(parse_reference(f"{tenant}/{name}{mark}{revision}", "revision"))


async def body_of(request: AnyRequest, kind: type[T]) -> T:
    """Return the JSON body as ``kind``; raises ``InvalidRequest`` naming the field, or ``body``."""
    return decode_body(await read_body(request), kind)


async def read_body(request: AnyRequest) -> bytes:
    """Return the body, which the framework bounds; a client too slow to send it is refused."""
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        raise InvalidRequest("body", f"did not arrive within {_BODY_TIMEOUT_S:.0f} s") from None
    except (ClientException, InternalServerException) as error:
        # The framework calls a client that left in the middle an error of the server.
        if error.status_code not in (400, 500):
            raise
        raise InvalidRequest("body", "did not arrive whole") from error
