"""The stream that gateways write to what requests used: read here, and written by nobody here."""

import msgspec
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity.copying import COPIED_MAX, copy_run
from octavo_identity.stream import Stream, StreamState
from octavo_shared import decoding
from octavo_shared.bus import Bus
from octavo_shared.messages.ledger import LedgerEvent
from octavo_shared.messages.usage import KEPT_DAYS, UsageRecord
from octavo_shared.subjects import USAGE_STREAM, USAGE_SUBJECTS
from octavo_shared.telemetry import log

_DAY_S = 86_400
_decoder = decoding.msgpack_decoder(UsageRecord)


class UsageStream:
    """Every method raises ``DependencyUnavailable``; see ``Stream``."""

    def __init__(self, bus: Bus, num_replicas: int) -> None:
        self._bus = bus
        self._stream = Stream(bus, USAGE_STREAM)
        self._num_replicas = num_replicas

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there. Nothing in it can be deleted; what is too old to be asked for goes."""
        config = StreamConfig(
            name=USAGE_STREAM,
            subjects=list(USAGE_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            max_age=(KEPT_DAYS + 1) * _DAY_S,
            deny_delete=True,
            deny_purge=True,
            allow_direct=True,
        )
        await self._stream.ensure(config)

    async def state(self) -> StreamState:
        """Return what the leader says of the stream."""
        return await self._stream.state()

    async def read_range(self, first: int, last: int) -> list[LedgerEvent]:
        """Return what there is from sequence ``first`` to ``last``, ``COPIED_MAX`` messages at most, in order.

        What no replica showed is asked of the leader: only it knows that a message is too old, and not just late.
        """
        assert last < first + COPIED_MAX
        found = await copy_run(self._bus, USAGE_STREAM, first, last)
        missing = [sequence for sequence in range(first, last + 1) if sequence not in found]
        for sequence in missing:
            if (event := await self._stream.get(sequence=sequence)) is not None:
                found[sequence] = event
        return [found[sequence] for sequence in sorted(found)]


def records_of(stored: list[LedgerEvent]) -> list[tuple[int, UsageRecord]]:
    """Return the records with their sequences; one that cannot be read counts nothing, and is told of."""
    found = []
    for event in stored:
        try:
            found.append((event.sequence, _decoder.decode(event.data)))
        except msgspec.MsgspecError as error:
            log.error("usage_record_damaged", sequence=event.sequence, detail=str(error))
    return found
