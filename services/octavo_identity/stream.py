"""One JetStream stream, read from its leader and written by compare-and-set."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeout
from nats.js import JetStreamContext
from nats.js.api import PubAck, RawStreamMsg, StreamConfig
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.telemetry import log

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_MESSAGE_ID = "Nats-Msg-Id"
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""The second one when the other write is still on its way to the replicas."""
_NO_MESSAGE_FOUND = 10037
_OTHER_CONFIGURATION = 10058
_NO_SUCH_SEQUENCE = 10043
_TIMEOUT_S = 4.0
_ASK_S = 1.0
"""What is not answered is sent again: whoever was to answer may be gone, and another one lead since."""
_UNANSWERED = (NatsTimeout, ServiceUnavailableError, NoStreamResponseError)
_ON_ITS_WAY = 10158
"""The first one of the same id, which the replicas do not have yet."""
_PAUSE_S = 0.1
SHORTER_S = 15.0
"""For longer than this no leader shows less than there is: an isolated one notices within some 10 s that it is."""

SMALL_BLOCKS = 2**62
"""As ``max_msgs_per_subject``, which is no limit: with any the server makes blocks of 4 MiB, without one of 8 MiB.

A block is what it reads, indexes and keeps as a whole when a message is asked for that lies in no cache.
"""

T = TypeVar("T")


@dataclass(frozen=True)
class StreamState:
    """Which stream this is (``created``, and as seconds since 1970), its last sequence and the first that it keeps."""

    created: str
    created_s: float
    last_sequence: int
    first_sequence: int = 1


class AlreadyAppended(Exception):
    """The stream took a message of the same id a while ago, at ``sequence``; nothing was appended."""

    def __init__(self, sequence: int) -> None:
        super().__init__(sequence)
        self.sequence = sequence


class Stream:
    """Every read asks the stream's leader: direct gets and watch caches go stale under faults.

    Every method raises ``DependencyUnavailable`` rather than to say that something is not there.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._jetstream = bus.client.jetstream(timeout=_TIMEOUT_S)
        self._asking = bus.client.jetstream(timeout=_ASK_S)
        self._longest: StreamState | None = None
        self._shorter_since_s: float | None = None

    async def ensure(self, config: StreamConfig) -> None:
        """Make the stream if it is not there; one that was made otherwise stays as it is."""
        try:
            await self._jetstream.add_stream(config)
        except APIError as error:
            if error.err_code != _OTHER_CONFIGURATION:
                raise DependencyUnavailable("JetStream") from error
            # Only its operator may change it. Nothing here needs what newer ones have; it goes faster with it.
            log.warning("stream_differs", stream=self._name, detail="its configuration is not what would be made now")
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error

    async def get(self, *, sequence: int | None = None, subject: str | None = None) -> LedgerEvent | None:
        """Return the message at ``sequence``, or the last one on ``subject``, which may hold wildcards."""
        return await self._get(sequence, subject, is_next=False)

    async def get_next(self, first: int, subject: str) -> LedgerEvent | None:
        """Return the first message on ``subject``, which may hold wildcards, at sequence ``first`` or behind it."""
        return await self._get(first, subject, is_next=True)

    async def _get(self, sequence: int | None, subject: str | None, *, is_next: bool) -> LedgerEvent | None:
        def read() -> Awaitable[RawStreamMsg]:
            return self._asking.get_msg(self._name, seq=sequence, subject=subject, next=is_next)

        try:
            message = await self._ask(read)
        except NotFoundError as error:
            # The whole stream may be what is not found.
            if error.err_code == _NO_MESSAGE_FOUND:
                return None
            raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        assert message.seq is not None
        assert message.subject is not None
        return LedgerEvent(message.seq, message.subject, message.data or b"")

    async def get_range(self, first: int, last: int) -> list[LedgerEvent | None]:
        """Return what is at ``first`` to ``last``, both included. Reads go out together: the caller bounds them."""
        return await asyncio.gather(*(self.get(sequence=sequence) for sequence in range(first, last + 1)))

    async def exists(self) -> bool:
        """Tell whether the stream is there at all."""
        try:
            await self._ask(lambda: self._asking.stream_info(self._name))
        except NotFoundError:
            return False
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        return True

    async def state(self) -> StreamState:
        """Return what the leader says of the stream.

        One that says less than was seen here before does not know yet that it leads no more, or not yet all that it
        leads. Only if this stays so has the stream become shorter, as when an older state of it was restored.
        """
        try:
            info = await self._ask(lambda: self._asking.stream_info(self._name))
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        if info.created is None:
            raise DependencyUnavailable("JetStream")
        kept = info.state
        state = StreamState(str(info.created), info.created.timestamp(), int(kept.last_seq), int(kept.first_seq))
        self._check_is_current(state)
        return state

    def _check_is_current(self, state: StreamState) -> None:
        now_s = asyncio.get_running_loop().time()
        longest = self._longest
        if longest is not None and state.created == longest.created and state.last_sequence < longest.last_sequence:
            self._shorter_since_s = now_s if self._shorter_since_s is None else self._shorter_since_s
            if now_s - self._shorter_since_s < SHORTER_S:
                raise DependencyUnavailable("a leader of JetStream that is up to date")
        self._longest, self._shorter_since_s = state, None

    async def _ask(self, read: Callable[[], Awaitable[T]]) -> T:
        """Return what ``read`` returns, asking again for a while where nobody answers."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _TIMEOUT_S
        while True:
            self._check_connected()
            try:
                return await read()
            except (*_UNANSWERED, APIError) as error:
                is_unanswered = isinstance(error, _UNANSWERED) or error.err_code == _ON_ITS_WAY
                if not is_unanswered or loop.time() + _PAUSE_S >= deadline_s:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def append(self, subject: str, data: bytes, previous_sequence: int, message_id: str = "") -> int:
        """Append ``data`` if the last message on ``subject`` still is ``previous_sequence``; returns its sequence.

        Raises ``RevisionConflict`` when somebody else was first, ``DependencyUnavailable`` when it is unknown whether
        it was stored, and ``AlreadyAppended`` when one of the same ``message_id`` was stored in the last minutes: also
        a second ago by this very call, which sends it again while it is not answered. Without an id the second one
        would be a conflict with the first.
        """
        headers = {EXPECTED_SEQUENCE: str(previous_sequence)}
        if message_id:
            headers[_MESSAGE_ID] = message_id

        def send(by: JetStreamContext) -> Awaitable[PubAck]:
            return by.publish(subject, data, headers=headers, stream=self._name)

        self._check_connected()
        try:
            ack = await (self._ask(lambda: send(self._asking)) if message_id else send(self._jetstream))
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                raise RevisionConflict from error
            raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        if ack.duplicate:
            raise AlreadyAppended(ack.seq)
        return ack.seq

    async def delete(self, sequence: int) -> None:
        """Delete the message at ``sequence``, whose bytes the server overwrites; one that is not there is fine."""
        self._check_connected()
        try:
            await self._jetstream.delete_msg(self._name, sequence)
        except APIError as error:
            if error.err_code != _NO_SUCH_SEQUENCE:
                raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error

    def _check_connected(self) -> None:
        # The client would buffer the request and send it when nobody waits any more.
        if not self._bus.is_connected:
            raise DependencyUnavailable("NATS")
