"""What all replicas are about to add for tenants that have quotas: one record for each tenant, by compare-and-set."""

import msgspec
from nats.js.api import RetentionPolicy, StorageType, StreamConfig

from octavo_identity.stream import Stream
from octavo_shared import decoding, subjects
from octavo_shared.bus import Bus
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.subjects import CLAIM_STREAM, CLAIM_SUBJECTS

LIVE_MS = 180_000
"""Longer than a push may take, whose claim is then nobody's: a replica that was killed gives none back."""


class Claim(msgspec.Struct, frozen=True):
    """Revision ``number``, which is being made of a pack of so many bytes since ``at_ms``; the pack is at ``place``."""

    place: str
    adapter_id: AdapterId
    number: int
    pack_bytes: int
    at_ms: int


_decoder = decoding.msgpack_decoder(tuple[Claim, ...])


class Claims:
    """Every method raises ``DependencyUnavailable``; see ``Stream``."""

    def __init__(self, bus: Bus, num_replicas: int) -> None:
        self._stream = Stream(bus, CLAIM_STREAM)
        self._num_replicas = num_replicas

    async def ensure_stream(self) -> None:
        """Make the stream if it is not there. Of each tenant it keeps the last record."""
        config = StreamConfig(
            name=CLAIM_STREAM,
            subjects=list(CLAIM_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            num_replicas=self._num_replicas,
            max_msgs_per_subject=1,
            deny_delete=True,
            deny_purge=True,
        )
        await self._stream.ensure(config)

    async def read(self, tenant_id: TenantId, now_ms: int) -> tuple[tuple[Claim, ...], int]:
        """Return the claims of a tenant that still live, and the sequence they are at (0: there were none)."""
        found = await self._stream.get(subject=subjects.claims(tenant_id))
        if found is None:
            return (), 0
        try:
            claims = _decoder.decode(found.data)
        except msgspec.MsgspecError as error:
            raise DependencyUnavailable("the stream of claims") from error
        return tuple(one for one in claims if now_ms - one.at_ms < LIVE_MS), found.sequence

    async def write(self, tenant_id: TenantId, claims: tuple[Claim, ...], previous_sequence: int) -> None:
        """Replace what was read at ``previous_sequence``; raises ``RevisionConflict`` when another replica has."""
        await self._stream.append(subjects.claims(tenant_id), msgspec.msgpack.encode(claims), previous_sequence)
