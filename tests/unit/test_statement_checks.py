"""What the command line accepts of a revision's provenance, and how it draws descent."""

import random
from typing import Any

import msgspec
import pytest

from octavo_cli.lineage_graph import GraphForm, draw
from octavo_cli.provenance_commands import problems, show
from octavo_shared import dsse, provenance
from octavo_shared.dsse import Signer
from octavo_shared.errors import InvalidRequest
from octavo_shared.lora_config import LoraConfig
from octavo_shared.messages.provenance import Lineage, LineageNode, Provenance, StatementSigner
from octavo_shared.provenance import Made
from octavo_shared.references import Digest, Fingerprint

PUSHER, REGISTRY, STRANGER = (Signer(bytes([n]) * 32) for n in (1, 2, 3))
MADE = Made(
    "home/diary", Digest("sha256:" + "1" * 64), Fingerprint("sha256:" + "2" * 64), None, "alice@home", LoraConfig(r=4)
)


def signer_of(signer: Signer, principal: str, **changed: Any) -> StatementSigner:
    fields = {"is_valid": True, "sequence": 3} | changed
    return StatementSigner(signer.key_id, principal, signer.public_key.pem, **fields)


def found(*signers: Signer, whose: tuple[StatementSigner, ...] | None = None, **changed: Any) -> Provenance:
    """What a gateway says of a good revision that ``signers`` signed."""
    envelope = dsse.sign(dsse.STATEMENT_TYPE, provenance.build(MADE, 0), signers[0])
    for signer in signers[1:]:
        envelope = dsse.countersign(envelope, signer)
    known = whose or (signer_of(PUSHER, "alice@home"), signer_of(REGISTRY, "registry"))
    good = Provenance("home/diary", 1, MADE.digest, "alice@home", 0, 7, "serving", envelope, known, True)
    return msgspec.structs.replace(good, **changed)


def test_what_both_signed_holds_and_so_does_what_the_registry_signed_alone() -> None:
    assert problems(found(PUSHER, REGISTRY)) == []
    assert problems(found(REGISTRY)) == []


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (found(PUSHER), "the registry has not signed it"),
        (found(PUSHER, REGISTRY, STRANGER), "no key that is trusted here"),
        (found(PUSHER, REGISTRY, digest=Digest("sha256:" + "9" * 64)), "subject.digest"),
        (found(PUSHER, REGISTRY, name="home/other"), "subject.name"),
        (found(PUSHER, REGISTRY, actor="bob@home"), "alice@home has signed it, and it is bob@home's"),
        (found(REGISTRY, actor="bob@home"), "predicate.pushedBy"),
        (
            found(PUSHER, REGISTRY, whose=(signer_of(PUSHER, "alice@home", is_valid=False),
                                           signer_of(REGISTRY, "registry"))),
            "was not a signing key of alice@home then",
        ),
        (
            found(STRANGER, REGISTRY, whose=(signer_of(STRANGER, "mallory@away"), signer_of(REGISTRY, "registry"))),
            "mallory@away has signed it",
        ),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_said(shown: Provenance, words: str) -> None:
    assert words in "; ".join(problems(shown))


def test_of_every_flipped_bit_in_what_is_shown_something_is_said() -> None:
    good = found(PUSHER, REGISTRY)
    assert good.envelope is not None
    data = dsse.encode(good.envelope)
    for bit in random.Random(22).sample(range(8 * len(data)), 300):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            envelope = dsse.decode(bytes(damaged))
        except InvalidRequest:
            continue
        try:
            assert problems(msgspec.structs.replace(good, envelope=envelope)), f"bit {bit}"
        except InvalidRequest:
            continue


def test_nothing_that_a_pusher_writes_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    facts = provenance.parse_facts(b'{"trainer": {"name": "\\u001b[31mpeft\\n\\u0007", "version": "1"}}')
    envelope = dsse.sign(dsse.STATEMENT_TYPE, provenance.build(MADE, 0, facts), PUSHER)
    show(found(PUSHER, REGISTRY, envelope=envelope))
    said = capsys.readouterr().out
    assert "?[31mpeft?? 1" in said
    assert "\x1b" not in said


def node(number: int, parent: str = "", **changed: Any) -> LineageNode:
    fields: dict[str, Any] = {"name": "home/diary", "actor": "alice@home", "is_branch": False, "aliases": ()} | changed
    return LineageNode(
        number=number, digest=Digest(f"sha256:{number:064x}"), at_ms=0, state="draft", parent=parent,
        is_signed_by_pusher=True, **fields,
    )  # fmt: skip


LINEAGE = Lineage(
    (node(1, "home/diary@2", name="bob/copy", is_branch=True, aliases=("serving", "stable")), node(2, "home/diary@1"),
     node(1, "", actor='"]\\n')), True,
)  # fmt: skip


def test_descent_is_drawn_for_mermaid() -> None:
    assert draw(LINEAGE, GraphForm.MERMAID).splitlines() == [
        "graph TD",
        '  r0["bob/copy@1<br/>000000000000, draft, serving, stable<br/>by alice@home, signed"]',
        '  r1["home/diary@2<br/>000000000000, draft<br/>by alice@home, signed"]',
        '  r2["home/diary@1<br/>000000000000, draft<br/>by #quot;]\\n, signed"]',
        "  r1 -. branch .-> r0",
        "  r2 --> r1",
    ]


def test_descent_is_drawn_for_graphviz() -> None:
    drawn = draw(LINEAGE, GraphForm.DOT).splitlines()
    assert drawn[0] == "digraph lineage {"
    assert drawn[-1] == "}"
    assert '  "home/diary@2" -> "bob/copy@1" [style=dashed, label="branch"];' in drawn
    assert '  "home/diary@1" -> "home/diary@2";' in drawn
    assert any('by \\"]\\\\n, signed' in line for line in drawn)


def test_a_parent_that_is_too_old_to_be_shown_is_drawn_all_the_same() -> None:
    drawn = draw(Lineage((node(9, "home/diary@8"),), False), GraphForm.MERMAID)
    assert '  r1["home/diary@8"]\n  r1 --> r0\n' in drawn
