"""What a pusher signs: a statement on the digest of the pack, which is made here out of the pusher's own files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from octavo_cli.answers import ClientError
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.signing_key import VARIABLE, read_key
from octavo_shared import decoding, dsse, provenance
from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.lora_config import parse_lora_config
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.pack import build_pack, digest_of
from octavo_shared.provenance import Facts, Made
from octavo_shared.references import DIGEST_PATTERN, Digest, Fingerprint, parse_reference
from octavo_shared.safetensors_form import RawTensor, read_tensors

_SIDES = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Signing:
    """What a push is signed with, and what only the pusher knows of it."""

    signer: Signer
    facts: Facts


def signing_of(key: Path | None, facts: Path | None) -> Signing | None:
    """Return what ``--signing-key`` and ``--provenance`` ask for, or None for a push without a statement."""
    if key is None:
        if facts is not None:
            raise ClientError(
                "usage", f"--provenance is a statement that you sign: name a key by --signing-key or {VARIABLE}; "
                "`octavo signer new` makes one", 0,
            )  # fmt: skip
        return None
    return Signing(read_key(key), read_facts(facts))


def read_facts(path: Path | None) -> Facts:
    """Return what a file of ``--provenance`` says; without one, nothing."""
    if path is None:
        return Facts()
    with path.open("rb") as file:
        return provenance.parse_facts(file.read(provenance.FACTS_BYTES_MAX + 1))


def check_registered(client: ProvenanceClient, signer: Signer) -> None:
    """Raise ``ClientError``, before anything is uploaded, when the caller may not sign with this key."""
    known = next((one for one in client.signers() if one.key_id == signer.key_id), None)
    if known is None:
        raise ClientError(
            "not_your_key", f"signing key {signer.key_id} is not registered as yours: `octavo signer add` it", 0
        )
    if known.revoked_at_ms is not None:
        raise ClientError("key_revoked", f"signing key {signer.key_id} of {known.principal} is revoked", 0)


def sign_branch(source: Revision, adapter: str, principal: str, signer: Signer) -> Envelope:
    """Return the statement that ``principal`` makes ``adapter`` from the revision ``source`` of another one, signed."""
    name = parse_reference(adapter, "adapter").name
    made = Made(name, source.digest, source.base, source.digest, principal, None)
    return dsse.sign(dsse.STATEMENT_TYPE, provenance.build(made, wall_ms()), signer)


@dataclass
class Pushed:
    """The adapter that is to be signed for; its pack is made once, also when it is signed again."""

    adapter: str
    config: Path
    weights: Path
    base: str | None
    dtype: str | None
    signing: Signing
    _made: Made | None = None

    def sign(self, begun: UploadBegun) -> Envelope:
        """Return the statement about a push, signed.

        Digest, rank and alpha are of the files; base and parent are those that the gateway said. Raises
        ``AdapterRefused``, ``ProvenanceRefused``, and ``BaseMismatch`` when it said another base than a fingerprint
        that the pusher gave.
        """
        if begun.base is None:
            raise ClientError("no_base", "which base this adapter is for is not clear: name it by --base", 0)
        if self.base is not None and DIGEST_PATTERN.match(self.base) and self.base != begun.base:
            raise BaseMismatch(adapter_base=Fingerprint(self.base), served_base=begun.base)
        if self._made is None or self._made.base != begun.base:
            self._made = self._make(begun.base)
        made = Made(
            self.adapter, self._made.digest, begun.base, begun.parent, begun.pushed_by, self._made.config
        )  # fmt: skip
        payload = provenance.build(made, wall_ms(), self.signing.facts)
        return dsse.sign(dsse.STATEMENT_TYPE, payload, self.signing.signer)

    def _make(self, base: Fingerprint) -> Made:
        try:
            given = decoding.from_json(self.config.read_bytes(), dict[str, Any])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise AdapterRefused("config", f"{self.config} is not a JSON object") from None
        config = parse_lora_config(given)
        _, tensors, _ = read_tensors(self.weights.read_bytes())
        _check_pairs(tensors)
        digest: Digest = digest_of(build_pack(config, tensors, base, self.dtype))
        return Made(self.adapter, digest, base, None, "", config)


def _check_pairs(tensors: dict[str, RawTensor]) -> None:
    """Raise ``AdapterRefused`` where no pack can be made; whether it is served right is the registry's to say."""
    for name, tensor in tensors.items():
        side = next((one for one in _SIDES if name.endswith(one)), None)
        if side is None or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise AdapterRefused("tensor_name", f"tensor {name!r} is none of a plain LoRA adapter")
        if name.removesuffix(side) + _SIDES[1 - _SIDES.index(side)] not in tensors:
            raise AdapterRefused("partner", f"tensor {name!r} has no partner")
