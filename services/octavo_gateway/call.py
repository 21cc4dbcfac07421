"""What a request's caller reads while it runs: one ``Head``, pieces of one or more answers, their ends, the ``End``."""

import asyncio
from dataclasses import dataclass

from octavo_gateway.openai import Ask
from octavo_shared.errors import OctavoError
from octavo_shared.messages.generation import Started, Timings


@dataclass(frozen=True)
class Head:
    """The request is being served: what goes into the status line and the headers."""

    ask: Ask
    request_id: str
    trace_id: str
    started: Started


@dataclass(frozen=True)
class ShownToken:
    """A token as people see it. ``raw`` is None for special tokens, which are no bytes of the text."""

    text: str
    raw: bytes | None
    logprob: float
    top: tuple["ShownToken", ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that no later piece changes, and the tokens whose logprobs were asked for that led up to it."""

    choice: int
    text: str
    tokens: tuple[ShownToken, ...] = ()


@dataclass(frozen=True)
class Echo:
    """A prompt that was scored: its text, and of each token its text, logprob (None: the first) and place."""

    text: str
    tokens: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class ChoiceEnd:
    """One answer is complete; ``tokens`` are those that no text followed. ``echo``: the prompt, where it was scored."""

    choice: int
    reason: str
    tokens: tuple[ShownToken, ...] = ()
    echo: Echo | None = None


@dataclass(frozen=True)
class End:
    """All answers are complete. Times and worker are those of the first one."""

    num_prompt_tokens: int
    num_completion_tokens: int
    num_cached_tokens: int
    timings: Timings
    worker_id: str


Event = Piece | ChoiceEnd | End


class Call:
    """The caller's side of a request. ``next`` gives pieces and ends, ``End`` last, or raises the error."""

    def __init__(self) -> None:
        # At most one piece per token and three more, and tokens are bounded by the base's context.
        self._events: asyncio.Queue[Head | Event | OctavoError] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    def put(self, event: Head | Event | OctavoError) -> None:
        self._events.put_nowait(event)

    async def head(self) -> Head:
        """Return the head; raises the error of a request that was not begun."""
        event = await self._take()
        assert isinstance(event, Head), "a head comes first"
        return event

    async def next(self) -> Event:
        """Return what follows; raises the error that ended the request."""
        event = await self._take()
        assert not isinstance(event, Head), "there is one head"
        return event

    def cancel(self) -> None:
        """The caller went away: end the request here and on its worker. Harmless when it has ended."""
        if self.task is not None:
            self.task.cancel()

    async def _take(self) -> Head | Event:
        event = await self._events.get()
        if isinstance(event, OctavoError):
            raise event
        return event
