"""From a request's events to the JSON that its caller reads; shared by HTTP and NATS."""

from octavo_gateway.front import Call, End, Head, Piece
from octavo_gateway.replies import OctavoUsage, Scribe, Usage
from octavo_shared.messages.generation import Timings


def headers_of(head: Head) -> dict[str, str]:
    """Return the response headers that name what is being served; the base alone has no revision."""
    started = head.started
    headers = {"octavo-base": started.base, "octavo-tier": started.tier.value, "octavo-trace-id": head.trace_id}
    if started.revision is not None and started.digest is not None:
        headers |= {"octavo-revision": str(started.revision), "octavo-digest": started.digest}
    return headers


def scribe_of(head: Head) -> Scribe:
    """Return the writer of this answer."""
    ask = head.ask
    return Scribe.begin(ask.kind, head.request_id, ask.model, head.started.base, has_usage=ask.has_usage)


def usage_of(head: Head, end: End) -> Usage:
    """Return the counts; times come from the worker's last word, or from its first when it had none."""
    timings = head.started.timings if end.timings == Timings() else end.timings
    return Usage(
        end.num_prompt_tokens,
        end.num_completion_tokens,
        end.num_prompt_tokens + end.num_completion_tokens,
        OctavoUsage(timings, end.worker_id),
    )


async def whole_answer(call: Call, head: Head) -> bytes:
    """Return the body of an answer that is not streamed; raises the error that ended it."""
    pieces = []
    while isinstance(event := await call.next(), Piece):
        pieces.append(event.text)
    return scribe_of(head).whole("".join(pieces), event.reason, usage_of(head, event))


class ChunkReader:
    """Reads a call as the chunks of a stream; ``is_final`` says whether the last one returned ends it."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call = call
        self._head = head
        self._scribe = scribe_of(head)
        opening = self._scribe.opening()
        self._ready = [opening] if opening is not None else []
        self._is_ended = False

    @property
    def is_final(self) -> bool:
        return self._is_ended and not self._ready

    async def next(self) -> bytes:
        """Return the next chunk; raises the error that ended the request."""
        if not self._ready:
            event = await self._call.next()
            if isinstance(event, Piece):
                return self._scribe.piece(event.text)
            self._is_ended = True
            self._ready = self._scribe.closing(event.reason, usage_of(self._head, event))
        return self._ready.pop(0)
