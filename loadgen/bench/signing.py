"""What statements cost a push and a reader, beside the check of a pack's digest, which is all that a load verifies."""

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from bench.report import Spread, console, machine_json, print_spreads, spread_of, spreads_json, warn_if_busy
from octavo_shared import dsse, provenance
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.errors import InvalidRequest
from octavo_shared.lora_config import LoraConfig
from octavo_shared.merkle import Tree, is_included
from octavo_shared.pack import PEFT_PREFIX, build_pack, digest_of
from octavo_shared.provenance import Facts, Made
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.safetensors_form import RawTensor

_NUM_ROUNDS = 5
_ROUND_S = 0.15
_NUM_LEAVES = 1_000_000
_RANK, _FEATURES, _NUM_MODULES = 16, 1_024, 32
_PUSHER, _REGISTRY = Signer(bytes([1]) * 32), Signer(bytes([2]) * 32)
_BASE = Fingerprint("sha256:" + "2" * 64)
_FACTS = provenance.parse_facts(
    b'{"data": {"digest": "sha256:' + b"4" * 64 + b'", "rows": 1200}, "trainer": {"name": "peft", "version": "0.18"},'
    b' "hyperparameters": {"learning_rate": 0.0002, "steps": 300}}'
)


def main() -> int:
    """Print a table and, last, one JSON line; 1 when what was signed is not what verifies."""
    out = console()
    warn_if_busy(out)
    config, tensors = _adapter()
    pack = build_pack(config, tensors, _BASE, None)
    made = Made("alice/diary", digest_of(pack), _BASE, Digest("sha256:" + "3" * 64), "alice@home", config)
    signed = _signed(made)
    envelope = _countersigned(signed, made)
    if not _is_right(envelope):
        out.print("what was signed does not verify, or what was changed does")
        return 1
    stored = dsse.encode(envelope)
    root, proof, leaf = _proof()
    pack_mib = len(pack) / 2**20
    works: dict[str, tuple[Callable[[], object], str]] = {
        "pusher_packs": (lambda: digest_of(build_pack(config, tensors, _BASE, None)), f"a pack of {pack_mib:.1f} MiB"),
        "pusher_signs": (lambda: _signed(made), "builds the statement, one signature"),
        "registry_checks_and_countersigns": (lambda: _countersigned(signed, made), "one verified, one made"),
        "registry_signs_alone": (lambda: dsse.encode(_signed(made, _REGISTRY, Facts())), "a push without a statement"),
        "reader_verifies": (lambda: _verified(stored), "both signatures, and parses"),
        "reader_proves": (
            lambda: is_included(leaf, 1, _NUM_LEAVES, proof, root), f"{len(proof)} hashes to the root of a million"
        ),
        "load_checks_digest": (lambda: digest_of(pack), f"{pack_mib:.1f} MiB; no signature is verified"),
    }  # fmt: skip
    spreads: dict[str, Spread] = {}
    notes: dict[str, str] = {}
    for name, (work, note) in works.items():
        spreads[f"{name}_ms"] = spread_of([_mean_ms(work) for _ in range(_NUM_ROUNDS)])
        notes[f"{name}_ms"] = note
    print_spreads(out, "signing", spreads, notes)
    told = {**machine_json(("cryptography",)), **spreads_json(spreads)}
    print(json.dumps({**told, "envelope_bytes": len(stored), "pack_bytes": len(pack)}))
    return 0


def _adapter() -> tuple[LoraConfig, dict[str, RawTensor]]:
    tensors = {}
    for number in range(_NUM_MODULES):
        for side, shape in (("A", (_RANK, _FEATURES)), ("B", (_FEATURES, _RANK))):
            words = np.frombuffer(os.urandom(2 * _RANK * _FEATURES), "<u2").reshape(shape) & 0x3FFF
            tensors[f"{PEFT_PREFIX}model.layers.{number}.q_proj.lora_{side}.weight"] = RawTensor("BF16", words)
    return LoraConfig(r=_RANK, lora_alpha=32.0, target_modules=("q_proj",)), tensors


def _signed(made: Made, signer: Signer = _PUSHER, facts: Facts = _FACTS) -> Envelope:
    return dsse.sign(dsse.STATEMENT_TYPE, provenance.build(made, 1_700_000_000_000, facts), signer)


def _countersigned(envelope: Envelope, made: Made) -> Envelope:
    """What the registry does with a statement, but for looking up keys."""
    statement = provenance.parse(envelope.data)
    dsse.verify(envelope, [_PUSHER.public_key])
    provenance.check_made(statement, made)
    both = dsse.countersign(envelope, _REGISTRY)
    dsse.encode(both)
    return both


def _verified(stored: bytes) -> object:
    envelope = dsse.decode(stored)
    dsse.verify(envelope, [_PUSHER.public_key, _REGISTRY.public_key])
    return provenance.parse(envelope.data)


def _proof() -> tuple[bytes, tuple[bytes, ...], bytes]:
    """Return a root of a million leaves, and the path to it of the second leaf, which is returned last."""
    tree = Tree()
    for number in range(_NUM_LEAVES):
        tree.append(number.to_bytes(32, "big"))
    return tree.root(_NUM_LEAVES), tree.inclusion_proof(1, _NUM_LEAVES), (1).to_bytes(32, "big")


def _is_right(envelope: Envelope) -> bool:
    stored = dsse.encode(envelope)
    _verified(stored)
    try:
        _verified(stored.replace(b'"sig":"', b'"sig":"A', 1))
    except InvalidRequest:
        return True
    return False


def _mean_ms(work: Callable[[], object]) -> float:
    """Return what ``work`` takes once, over as many times as fit into a round."""
    work()
    num_times, begun = 0, time.perf_counter()
    while (passed_s := time.perf_counter() - begun) < _ROUND_S:
        work()
        num_times += 1
    return passed_s / num_times * 1e3


if __name__ == "__main__":
    sys.exit(main())
