"""From the two files of an upload to the bytes of its pack."""

from dataclasses import dataclass

from octavo_identity.validator import validate
from octavo_shared.manifest import BaseManifest
from octavo_shared.pack import PackHeader, build_pack, digest_of, read_header
from octavo_shared.patterns import Matcher
from octavo_shared.references import Digest


@dataclass(frozen=True)
class Built:
    """A pack that was validated and not stored yet. Header and digest were taken of these very bytes."""

    pack: bytes
    header: PackHeader
    digest: Digest


def build(config: bytes, weights: bytes | memoryview, base: BaseManifest, dtype: str | None) -> bytes:
    """Return the pack of an upload; raises ``AdapterRefused``. One matcher bounds all that its patterns may take."""
    matcher = Matcher()
    valid = validate(config, weights, base, matcher)
    return build_pack(valid.config, valid.tensors, base.fingerprint, dtype, matcher)


def read_back(pack: bytes) -> Built:
    """Read a pack as a worker will: what cannot be read is never committed."""
    return Built(pack, read_header(pack), digest_of(pack))
