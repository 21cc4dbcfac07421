"""Signed checkpoints of the ledger in a stream of their own."""

from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity.stream import Stream, StreamState
from octavo_shared.bus import Bus
from octavo_shared.subjects import CHECKPOINT_STREAM, CHECKPOINTS

KEPT_MAX = 100_000
"""A busy day's: one takes about 250 bytes. The newest is what proofs need; older ones help to date what went wrong."""


class Checkpoints:
    """The newest is read from the leader and followed by compare-and-set, so that their sizes never go back."""

    def __init__(self, bus: Bus, num_replicas: int) -> None:
        self._stream = Stream(bus, CHECKPOINT_STREAM)
        self._num_replicas = num_replicas

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there; nothing in it can be deleted, but the oldest give way to new ones."""
        config = StreamConfig(
            name=CHECKPOINT_STREAM,
            subjects=[CHECKPOINTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            max_msgs=KEPT_MAX,
            deny_delete=True,
            deny_purge=True,
        )
        await self._stream.ensure(config)

    async def newest(self) -> tuple[str, int] | None:
        """Return the newest note and its sequence, or None when there is none yet."""
        found = await self._stream.get(subject=CHECKPOINTS)
        return (found.data.decode(errors="replace"), found.sequence) if found else None

    async def read_range(self, first: int, last: int) -> list[str | None]:
        """Return the notes at sequences ``first`` to ``last``, both included, None for each that is not there."""
        found = await self._stream.get_range(first, last)
        return [one.data.decode(errors="replace") if one is not None else None for one in found]

    async def state(self) -> StreamState:
        """Return what the leader says of the stream; one that somebody deleted is empty."""
        return await self._stream.state() if await self._stream.exists() else StreamState("", 0.0, 0)

    async def append(self, note: str, previous_sequence: int) -> None:
        """Add ``note`` behind the one at ``previous_sequence`` (0: the first); raises ``RevisionConflict``."""
        await self._stream.append(CHECKPOINTS, note.encode(), previous_sequence)
