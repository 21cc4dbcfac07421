"""One JetStream stream, read from its leader and written by compare-and-set."""

import asyncio
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.js.api import StreamConfig
from nats.js.errors import APIError, NotFoundError

from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.telemetry import log

EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""The second one when the other write is still on its way to the replicas."""
_NO_MESSAGE_FOUND = 10037
_OTHER_CONFIGURATION = 10058
_NO_SUCH_SEQUENCE = 10043
_TIMEOUT_S = 4.0


@dataclass(frozen=True)
class StreamState:
    """Which stream this is (``created``, and as seconds since 1970) and its last sequence."""

    created: str
    created_s: float
    last_sequence: int


class Stream:
    """Every read asks the stream's leader: direct gets and watch caches go stale under faults.

    Every method raises ``DependencyUnavailable`` rather than to say that something is not there.
    """

    def __init__(self, bus: Bus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._jetstream = bus.client.jetstream(timeout=_TIMEOUT_S)

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
        self._check_connected()
        try:
            message = await self._jetstream.get_msg(self._name, seq=sequence, subject=subject, next=is_next)
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

    async def state(self) -> StreamState:
        """Return what the leader says of the stream."""
        self._check_connected()
        try:
            info = await self._jetstream.stream_info(self._name)
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        if info.created is None:
            raise DependencyUnavailable("JetStream")
        return StreamState(str(info.created), info.created.timestamp(), int(info.state.last_seq))

    async def append(self, subject: str, data: bytes, previous_sequence: int) -> int:
        """Append ``data`` if the last message on ``subject`` still is ``previous_sequence``; returns its sequence.

        Raises ``RevisionConflict`` when somebody else was first, and ``DependencyUnavailable`` when it is unknown
        whether it was stored.
        """
        self._check_connected()
        try:
            ack = await self._jetstream.publish(
                subject, data, headers={EXPECTED_SEQUENCE: str(previous_sequence)}, stream=self._name
            )
        except APIError as error:
            if error.err_code in WRONG_LAST_SEQUENCE:
                raise RevisionConflict from error
            raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
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
