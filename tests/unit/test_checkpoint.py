"""Checkpoints as C2SP writes them, and what is not one."""

import base64

import pytest

from octavo_shared.checkpoint import Checkpoint, CheckpointRefused, Signer, Verifier

SIGNER = Signer(bytes(range(32)), "example.com/log")
ROOT = bytes(range(100, 132))
NOTE = SIGNER.sign(7, ROOT)


def test_keys_ids_and_signatures_are_those_of_gos_signed_notes() -> None:
    seed = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
    signer = Signer(seed, "PeterNeumann")
    assert str(signer.verifier) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    said = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    assert base64.b64encode(signer.verifier.key_id + signer._key.sign(said)).decode() == line


def test_a_note_has_three_lines_and_a_signature_and_opens_again() -> None:
    lines = NOTE.split("\n")
    assert lines[:4] == ["example.com/log", "7", base64.b64encode(ROOT).decode(), ""]
    assert lines[4].startswith("— example.com/log ")
    assert lines[5:] == [""]
    assert SIGNER.verifier.open(NOTE) == Checkpoint("example.com/log", 7, ROOT)
    assert Signer(bytes(range(32)), "example.com/log").sign(7, ROOT) == NOTE


def test_a_verifier_is_written_and_read() -> None:
    assert Verifier.parse(f"{SIGNER.verifier}\n") == SIGNER.verifier


def test_other_signatures_and_extensions_are_passed_over() -> None:
    witness = Signer(bytes(32), "witness").sign(7, ROOT).split("\n\n")[1]
    assert SIGNER.verifier.open(NOTE + witness).size == 7
    with pytest.raises(CheckpointRefused, match="not signed by"):
        SIGNER.verifier.open(NOTE.split("\n\n")[0] + "\n\n" + witness)
    text = Checkpoint("example.com/log", 7, ROOT).text + "an extension\n"
    signature = SIGNER.verifier.key_id + SIGNER._key.sign(text.encode())
    note = f"{text}\n— example.com/log {base64.b64encode(signature).decode()}\n"
    assert SIGNER.verifier.open(note).root == ROOT


def test_every_flipped_bit_of_a_note_is_noticed() -> None:
    raw = NOTE.encode()
    for bit in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointRefused):
            SIGNER.verifier.open(changed.decode(errors="replace"))


@pytest.mark.parametrize(
    "note",
    ["", "\n\n", NOTE[:-1], NOTE + "\n", NOTE.replace("\n\n", "\n"), NOTE * 200, NOTE.split("\n\n")[0] + "\n\n"],
    ids=["empty", "blank", "no last line end", "a blank line more", "no blank line", "long", "no signature"],
)
def test_other_forms_are_refused(note: str) -> None:
    with pytest.raises(CheckpointRefused):
        SIGNER.verifier.open(note)


@pytest.mark.parametrize(
    "text",
    ["", "name", "name+00000000+AAAA", f"other{SIGNER.verifier}", f"{SIGNER.verifier}".replace("+A", "+B", 1), "a+b+é"],
)
def test_a_damaged_key_is_refused(text: str) -> None:
    with pytest.raises(CheckpointRefused):
        Verifier.parse(text)


@pytest.mark.parametrize("text", ["octavo\n7\n", "example.com/log\n07\nAAAA\n", "example.com/log\n7\nAAAA\n"])
def test_what_is_signed_but_no_checkpoint_of_this_log_is_refused(text: str) -> None:
    signature = SIGNER.verifier.key_id + SIGNER._key.sign(text.encode())
    note = f"{text}\n— example.com/log {base64.b64encode(signature).decode()}\n"
    with pytest.raises(CheckpointRefused):
        SIGNER.verifier.open(note)
