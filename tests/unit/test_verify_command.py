"""What ``octavo verify`` says that it did not check."""

import pytest

from octavo_cli.verify_command import not_checked
from octavo_shared.ledger_statements import SignedBy
from octavo_shared.references import parse_reference

ALICE, REGISTRY = SignedBy("alice@home", "a" * 64, 9), SignedBy("registry", "b" * 64, 3)


@pytest.mark.parametrize(
    ("reference", "signed", "sequence", "said"),
    [
        ("home/diary@2", (), 10, []),
        ("home/diary@2", (ALICE,), 10, []),
        ("home/diary@2", (ALICE,), 11, ["whether event 10 revoked a key that signed"]),
        ("home/diary@2", (ALICE, REGISTRY), 10, ["whether any of events 4 to 9 revoked a key that signed"]),
        ("home/diary", (), 10, ["that home/diary means revision 2 now"]),
        ("home/diary:stable", (ALICE,), 10, ["that home/diary:stable means revision 2 now"]),
        (f"home/diary@sha256:{1:064x}", (ALICE,), 12, ["whether any of events 10 to 11 revoked a key that signed"]),
    ],
)
def test_what_is_left_to_the_registrys_word_is_named(
    reference: str, signed: tuple[SignedBy, ...], sequence: int, said: list[str]
) -> None:
    told = not_checked(parse_reference(reference), 2, signed, sequence)
    assert [one.partition(";")[0] for one in told] == said
