"""Heads in one JetStream stream: leader reads and compare-and-set. The only durable truth."""

import asyncio
from dataclasses import dataclass

import msgspec
from nats.errors import Error as NatsError
from nats.js.api import RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from octavo_identity.records import RegistryEvent
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable, RevisionConflict
from octavo_shared.subjects import REGISTRY_STREAM, REGISTRY_SUBJECTS

_EXPECTED_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""The second one when the other write is still on its way to the replicas."""
_NO_MESSAGE_FOUND = 10037
_TIMEOUT_S = 4.0

_decoder = msgspec.msgpack.Decoder(RegistryEvent)


@dataclass(frozen=True)
class StreamState:
    """Which stream this is (``created``, and as seconds since 1970) and its last sequence."""

    created: str
    created_s: float
    last_sequence: int


class HeadStore:
    """Every read asks the stream's leader: direct gets and watch caches go stale under faults."""

    def __init__(self, bus: Bus, num_replicas: int) -> None:
        self._bus = bus
        self._jetstream = bus.client.jetstream(timeout=_TIMEOUT_S)
        self._num_replicas = num_replicas

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there; nothing in it can be deleted."""
        config = StreamConfig(
            name=REGISTRY_STREAM,
            subjects=list(REGISTRY_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            deny_delete=True,
            deny_purge=True,
        )
        try:
            await self._jetstream.add_stream(config)
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error

    async def read(self, subject: str) -> tuple[RegistryEvent, int] | None:
        """Return the last event on ``subject``, which may hold wildcards, and its sequence, or None.

        Every read raises ``DependencyUnavailable`` rather than to say that something is not there.
        """
        return await self._get(subject=subject)

    async def read_at(self, sequence: int) -> RegistryEvent | None:
        """Return the event at ``sequence``."""
        found = await self._get(sequence=sequence)
        return found[0] if found else None

    async def read_range(self, first: int, last: int) -> list[tuple[RegistryEvent, int]]:
        """Return the events from sequence ``first`` to ``last``, both included, of all subjects, in order.

        Reads go out together, so the caller bounds the range. Nothing is ever deleted from the stream, so a hole is
        damage, which raises ``DependencyUnavailable``: whoever went on behind it would not know what is missing.
        """
        sequences = range(first, last + 1)
        found = await asyncio.gather(*(self._get(sequence=sequence) for sequence in sequences))
        complete = [one for one in found if one is not None]
        if len(complete) < len(found):
            raise DependencyUnavailable("a part of the registry stream")
        return complete

    async def _get(
        self, *, sequence: int | None = None, subject: str | None = None
    ) -> tuple[RegistryEvent, int] | None:
        self._check_connected()
        try:
            message = await self._jetstream.get_msg(REGISTRY_STREAM, seq=sequence, subject=subject)
        except NotFoundError as error:
            # The whole stream may be what is not found.
            if error.err_code == _NO_MESSAGE_FOUND:
                return None
            raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        assert message.data is not None
        assert message.seq is not None
        return _decoder.decode(message.data), message.seq

    def _check_connected(self) -> None:
        # The client would buffer the request and send it when nobody waits any more.
        if not self._bus.is_connected:
            raise DependencyUnavailable("NATS")

    async def state(self) -> StreamState:
        """Return what the leader says of the stream."""
        self._check_connected()
        try:
            info = await self._jetstream.stream_info(REGISTRY_STREAM)
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        if info.created is None:
            raise DependencyUnavailable("JetStream")
        return StreamState(str(info.created), info.created.timestamp(), int(info.state.last_seq))

    async def append(self, subject: str, event: RegistryEvent) -> int:
        """Append ``event`` if the last one on ``subject`` still is ``event.previous_sequence``.

        Raises ``RevisionConflict`` when somebody else was first, and ``DependencyUnavailable`` when it is unknown
        whether the event was stored; the writer's idempotency key makes trying again safe.
        """
        self._check_connected()
        try:
            ack = await self._jetstream.publish(
                subject,
                msgspec.msgpack.encode(event),
                headers={_EXPECTED_SEQUENCE: str(event.previous_sequence)},
                stream=REGISTRY_STREAM,
            )
        except APIError as error:
            if error.err_code in _WRONG_LAST_SEQUENCE:
                raise RevisionConflict from error
            raise DependencyUnavailable("JetStream") from error
        except (NatsError, OSError) as error:
            raise DependencyUnavailable("JetStream") from error
        return ack.seq
