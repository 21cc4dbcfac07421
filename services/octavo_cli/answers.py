"""What the gateway answers, as its client sees it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import msgspec

from octavo_shared import decoding
from octavo_shared.dsse import Envelope
from octavo_shared.errors import Fields
from octavo_shared.messages.generation import Timings
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.references import AdapterId


class ClientError(Exception):
    """The gateway refused, or was not reached, or broke off (``status`` 0). ``code`` never changes."""

    def __init__(self, code: str, message: str, status: int, fields: Fields | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields: Fields = fields or {}


class Erasure(msgspec.Struct, frozen=True):
    """The signed receipt of an erasure, and the key that signed it."""

    adapter_id: AdapterId
    receipt: Envelope
    public_key: str


class NewKey(msgspec.Struct, frozen=True):
    """A fresh key; ``key`` is its text, shown once."""

    key: str
    key_id: str
    principal: str
    role: Role
    scopes: tuple[Scope, ...] = ()
    adapters: str = ""
    expires_at_ms: int = 0
    label: str = ""


@dataclass(frozen=True)
class Download:
    """A pack as it is stored, and what the gateway said about it."""

    pack: bytes
    revision: int
    digest: str
    base: str
    base_name: str


@dataclass
class Answer:
    """What is known of a streamed answer; filled while it streams, complete when the stream has ended."""

    revision: int | None = None
    digest: str | None = None
    base: str = ""
    tier: str = ""
    trace_id: str = ""
    ttft_ms: float = 0.0
    """From sending the request to the first text."""
    total_ms: float = 0.0
    num_completion_tokens: int = 0
    timings: Timings = field(default_factory=Timings)
    finish_reason: str = ""

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: tokens after the first, over the time after the first."""
        seconds = (self.total_ms - self.ttft_ms) / 1000
        return max(0, self.num_completion_tokens - 1) / seconds if seconds > 0 else 0.0


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    code: str
    fields: Fields = {}


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class Delta(msgspec.Struct, frozen=True):
    content: str = ""


class Choice(msgspec.Struct, frozen=True):
    delta: Delta
    finish_reason: str | None = None


class OctavoUsage(msgspec.Struct, frozen=True):
    timings: Timings


class Usage(msgspec.Struct, frozen=True):
    completion_tokens: int
    octavo: OctavoUsage | None = None


class Chunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: ErrorDetail | None = None


class Model(msgspec.Struct, frozen=True):
    id: str


class Models(msgspec.Struct, frozen=True):
    data: list[Model]


def read_head(headers: httpx.Headers, answer: Answer) -> None:
    answer.base = headers.get("octavo-base", "")
    answer.tier = headers.get("octavo-tier", "")
    answer.trace_id = headers.get("octavo-trace-id", "")
    answer.digest = headers.get("octavo-digest")
    answer.revision = int(headers["octavo-revision"]) if "octavo-revision" in headers else None


def read_chunk(data: str, answer: Answer) -> list[str]:
    chunk = decoding.from_json(data, Chunk)
    if chunk.error is not None:
        raise ClientError(chunk.error.code, chunk.error.message, 200)
    if chunk.usage is not None:
        answer.num_completion_tokens = chunk.usage.completion_tokens
        if chunk.usage.octavo is not None:
            answer.timings = chunk.usage.octavo.timings
    for choice in chunk.choices:
        answer.finish_reason = choice.finish_reason or answer.finish_reason
    return [choice.delta.content for choice in chunk.choices if choice.delta.content]


def check(response: httpx.Response) -> None:
    """Raise what the gateway refused with."""
    if response.is_success:
        return
    response.read()
    try:
        error = decoding.from_json(response.content, ErrorBody).error
    except msgspec.MsgspecError:
        raise ClientError(
            "http_error", f"the gateway answered with status {response.status_code}", response.status_code
        ) from None
    raise ClientError(error.code, error.message, response.status_code, error.fields)


@contextmanager
def as_client_errors() -> Iterator[None]:
    """Turn what goes wrong on the way into a ``ClientError``."""
    try:
        yield
    except httpx.ConnectError as error:
        where = error.request.url
        raise ClientError("unreachable", f"no gateway answers at {where.scheme}://{where.netloc.decode()}", 0) from None
    except httpx.TimeoutException:
        raise ClientError("timeout", "the gateway did not answer in time", 0) from None
    except httpx.HTTPError as error:
        raise ClientError("connection_lost", f"the connection to the gateway was lost: {error}", 0) from None
    except msgspec.MsgspecError as error:
        raise ClientError("bad_answer", f"the gateway's answer was not understood: {error}", 0) from None
