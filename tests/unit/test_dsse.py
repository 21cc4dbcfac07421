"""Envelopes: whoever else reads DSSE verifies them, and nothing in one can change unnoticed."""

import json
import random
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from octavo_shared import dsse
from octavo_shared.errors import InvalidRequest

PUSHER, REGISTRY, STRANGER = (dsse.Signer(bytes([n]) * 32) for n in (1, 2, 3))
PAYLOAD = dsse.encode_json({"b": [1, 2.5, "ä"], "a": {"z": None, "y": True}})


def both() -> dsse.Envelope:
    return dsse.countersign(dsse.sign(dsse.STATEMENT_TYPE, PAYLOAD, PUSHER), REGISTRY)


def keys(*signers: dsse.Signer) -> list[dsse.PublicKey]:
    return [signer.public_key for signer in signers]


def test_what_is_signed_is_what_the_specification_says() -> None:
    assert dsse.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_key_and_its_signatures_are_those_that_any_ed25519_gives() -> None:
    for number in range(50):
        seed, data = bytes([number]) * 32, bytes(number)
        signer, theirs = dsse.Signer(seed), Ed25519PrivateKey.from_private_bytes(seed)
        assert signer.public_key.raw == theirs.public_key().public_bytes_raw()
        assert signer.sign(data) == theirs.sign(data)


def test_verify_says_who_signed_in_order() -> None:
    assert dsse.verify(both(), keys(REGISTRY, STRANGER, PUSHER)) == (PUSHER.key_id, REGISTRY.key_id)


def test_countersigning_again_changes_nothing() -> None:
    assert dsse.countersign(both(), REGISTRY) == both()


def test_equal_values_are_equal_bytes() -> None:
    assert '{"a":{"y":true,"z":null},"b":[1,2.5,"ä"]}'.encode() == PAYLOAD


def test_an_envelope_is_read_back_as_it_was() -> None:
    assert dsse.decode(dsse.encode(both())) == both()
    assert both().data == PAYLOAD


def their_keys(*signers: dsse.Signer) -> list[SSlibKey]:
    return [
        SSlibKey(one.key_id, "ed25519", "ed25519", {"public": one.public_key.raw.hex()}) for one in signers
    ]  # fmt: skip


def test_securesystemslib_verifies_both_signatures() -> None:
    theirs = TheirEnvelope.from_dict(json.loads(dsse.encode(both())))
    accepted = theirs.verify(their_keys(PUSHER, REGISTRY), 2)
    assert set(accepted) == {PUSHER.key_id, REGISTRY.key_id}
    with pytest.raises(VerificationError):
        theirs.verify(their_keys(PUSHER, STRANGER), 2)


def test_openssl_computes_the_same_key_id(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text(PUSHER.public_key.pem)
    command = ["openssl", "pkey", "-pubin", "-in", str(tmp_path / "key.pem"), "-outform", "DER"]
    der = subprocess.run(command, check=True, capture_output=True).stdout
    said = subprocess.run(["sha256sum"], input=der, check=True, capture_output=True).stdout
    assert said.decode().split()[0] == PUSHER.key_id


def test_a_public_key_is_read_from_pem_and_nothing_else_is() -> None:
    assert dsse.PublicKey.parse(PUSHER.public_key.pem) == PUSHER.public_key
    for text in ("", "no key", PUSHER.public_key.pem[:-40]):
        with pytest.raises(InvalidRequest, match="'public_key'"):
            dsse.PublicKey.parse(text)


def refused(envelope: dsse.Envelope, *signers: dsse.Signer) -> str:
    with pytest.raises(InvalidRequest) as caught:
        dsse.verify(envelope, keys(*signers))
    return str(caught.value.fields["field"])


def test_a_signature_of_a_strange_key_is_refused_by_its_place() -> None:
    assert refused(both(), PUSHER, STRANGER) == "envelope.signatures[1].keyid"


def test_a_signature_under_the_name_of_another_key_is_refused() -> None:
    forged = dsse.sign(dsse.STATEMENT_TYPE, PAYLOAD, STRANGER).signatures[0]
    envelope = dsse.Envelope(both().payload, dsse.STATEMENT_TYPE, (dsse.Signature(PUSHER.key_id, forged.sig),))
    assert refused(envelope, PUSHER) == "envelope.signatures[0].sig"


def test_no_signature_and_one_twice_are_refused() -> None:
    envelope = both()
    assert refused(dsse.Envelope(envelope.payload, envelope.payload_type, ()), PUSHER) == "envelope.signatures"
    twice = dsse.Envelope(envelope.payload, envelope.payload_type, (envelope.signatures[0],) * 2)
    assert refused(twice, PUSHER) == "envelope.signatures"


def test_a_signature_does_not_hold_for_another_type() -> None:
    envelope = both()
    assert refused(dsse.Envelope(envelope.payload, "text/plain", envelope.signatures), PUSHER, REGISTRY)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"\xff", b'{"payload":"","payloadType":"a"}',
        b'{"payload":"","payloadType":"a","signatures":[],"more":1}', b'{"payload":"","payloadType":1,"signatures":[]}',
        dsse.encode(both()) + b" ", dsse.encode(both()).replace(b'"payloadType"', b'"payload":"","payloadType"'),
        b'{"payload":"' + b"A" * dsse.ENVELOPE_BYTES_MAX + b'","payloadType":"a","signatures":[]}', b"[" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="'envelope"):
        dsse.decode(data)


def test_every_flipped_bit_is_noticed() -> None:
    data = dsse.encode(both())
    for bit in random.Random(4).sample(range(8 * len(data)), 600):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidRequest):
            dsse.verify(dsse.decode(bytes(damaged)), keys(PUSHER, REGISTRY))
