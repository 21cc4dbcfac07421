"""From a request's events to the JSON that its caller reads; shared by HTTP and NATS."""

from octavo_gateway.call import Call, ChoiceEnd, End, Head, Piece
from octavo_gateway.logprobs import LogprobsWriter
from octavo_gateway.replies import OctavoUsage, PromptTokensDetails, Scribe, Usage, WholeChoice
from octavo_shared.messages.generation import Timings


def headers_of(head: Head) -> dict[str, str]:
    """Return the response headers that name what is being served; the base alone has no revision."""
    started = head.started
    headers = {"octavo-base": started.base, "octavo-tier": started.tier.value, "octavo-trace-id": head.trace_id}
    if started.revision is not None and started.digest is not None:
        headers |= {"octavo-revision": str(started.revision), "octavo-digest": started.digest}
    return headers


def scribe_of(head: Head) -> Scribe:
    """Return the writer of these answers."""
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
        PromptTokensDetails(end.num_cached_tokens),
    )


async def whole_answer(call: Call, head: Head) -> bytes:
    """Return the body of answers that are not streamed; raises the error that ended them."""
    choices = [WholeChoice(LogprobsWriter(head.ask)) for _ in range(head.ask.num_choices)]
    while not isinstance(event := await call.next(), End):
        choice = choices[event.choice]
        choice.tokens.extend(event.tokens)
        if isinstance(event, Piece):
            choice.pieces.append(event.text)
        else:
            choice.reason, choice.echo = event.reason, event.echo
    return scribe_of(head).whole(choices, usage_of(head, event))


class ChunkReader:
    """Reads a call as the chunks of a stream; ``is_final`` says whether the last one returned ends it."""

    def __init__(self, call: Call, head: Head) -> None:
        self._call = call
        self._head = head
        self._scribe = scribe_of(head)
        self._logprobs = [LogprobsWriter(head.ask) for _ in range(head.ask.num_choices)]
        self._num_running = head.ask.num_choices
        self._ready = [opening for index in range(self._num_running) if (opening := self._scribe.opening(index))]
        self._is_ended = False

    @property
    def is_final(self) -> bool:
        return self._is_ended and not self._ready

    async def next(self) -> bytes:
        """Return the next chunk; raises the error that ended the request."""
        while not self._ready:
            await self._take()
        return self._ready.pop(0)

    async def _take(self) -> None:
        match await self._call.next():
            case Piece(choice, text, tokens):
                self._ready.append(self._scribe.piece(choice, text, self._logprobs[choice].write(tokens)))
            case ChoiceEnd(choice, reason, tokens):
                self._ready.append(self._scribe.closing(choice, reason, self._logprobs[choice].write(tokens)))
                self._num_running -= 1
                # Without a usage chunk the last answer's end is the stream's, so ``End`` is awaited with it.
                if self._num_running == 0:
                    end = await self._call.next()
                    assert isinstance(end, End), "nothing follows the last answer but the end"
                    self._is_ended = True
                    if self._scribe.has_usage:
                        self._ready.append(self._scribe.usage(usage_of(self._head, end)))
