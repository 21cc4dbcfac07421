"""The JSON of a request and of its chunks, the same over HTTP and NATS; and server-sent events as bytes."""

import msgspec

from octavo_loadgen.scenario import Sampling
from octavo_loadgen.timeline import UNDECODABLE, Timeline
from octavo_loadgen.workload import Arrival
from octavo_shared import decoding

_EVENT_BYTES_MAX = 4 * 1024 * 1024


class _Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = True


class _Body(msgspec.Struct, frozen=True):
    model: str
    messages: list[_Message]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stream: bool = True
    stream_options: _StreamOptions = _StreamOptions()


class _Delta(msgspec.Struct, frozen=True):
    content: str | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(msgspec.Struct, frozen=True):
    completion_tokens: int = 0


class _Error(msgspec.Struct, frozen=True):
    code: str | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_chunks = decoding.json_decoder(_Chunk)


def body_of(arrival: Arrival, sampling: Sampling) -> bytes:
    """Return the chat request of ``arrival`` as JSON; it asks for a stream with usage."""
    prompt = arrival.prompt
    messages = [_Message("system", prompt.system)] if prompt.system else []
    messages.append(_Message("user", prompt.text))
    return msgspec.json.encode(
        _Body(arrival.target.model, messages, arrival.max_tokens, sampling.temperature, sampling.top_p, arrival.seed)
    )


def note_chunk(timeline: Timeline, data: bytes, at_ms: float) -> None:
    """Write into ``timeline`` what the chunk ``data``, which came at ``at_ms``, says; an error ends it."""
    try:
        chunk = _chunks.decode(data)
    except msgspec.MsgspecError:
        timeline.fail(UNDECODABLE, at_ms)
        return
    if chunk.error is not None:
        timeline.fail(chunk.error.code or "error_without_code", at_ms)
        return
    for choice in chunk.choices:
        if choice.delta.content:
            timeline.text_ms.append(at_ms)
            # A lower bound, until the usage says how many tokens there were.
            timeline.num_tokens += 1
        if choice.finish_reason is not None:
            timeline.finish_ms = at_ms
    if chunk.usage is not None:
        timeline.num_tokens = chunk.usage.completion_tokens


def error_code_of(body: bytes, status: int) -> str:
    """Return the code in an error body, or ``http_<status>`` when it holds none."""
    try:
        error = _chunks.decode(body).error
    except msgspec.MsgspecError:
        error = None
    return error.code if error is not None and error.code else f"http_{status}"


class EventReader:
    """Splits a stream of bytes into the data of its server-sent events.

    Lines end at ``\\n`` or ``\\r\\n`` only: text splitting would also cut at the separators
    that JSON leaves unescaped (U+2028, U+0085).
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Return the data of the events that ``received`` completes; raises ``ValueError`` past the size limit."""
        *lines, self._tail = (self._tail + received).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                value = line[5:].removeprefix(b" ")
                self._data_bytes += len(value)
                self._data.append(value)
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data, self._data_bytes = [], 0
        if self._data_bytes + len(self._tail) > _EVENT_BYTES_MAX:
            raise ValueError("an event exceeds the size limit")
        return events
