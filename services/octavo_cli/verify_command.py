"""``octavo verify``: one revision, or everything, against the ledger's signed root; nothing is taken on trust."""

from datetime import datetime

from rich.console import Console

from octavo_cli.answers import ClientError
from octavo_cli.client import Client
from octavo_cli.ledger_statements import StatementAuditor, proven_keys
from octavo_cli.options import Target
from octavo_cli.trust import TrustFile
from octavo_cli.verification import Auditor, NotProven, Trusted, check_revision
from octavo_shared.checkpoint import Checkpoint
from octavo_shared.ledger_statements import SignedBy, StatementRefused, check_statement
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL
from octavo_shared.references import Reference, parse_reference

_SHORT_KEY = slice(16)


def verify(target: Target, reference: str | None, is_all: bool, public_key: str | None) -> None:
    """Prove a revision or audit all events, and print what holds; raises ``NotProven`` for what does not."""
    if (reference is None) != is_all:
        raise ClientError("usage", "name a revision to verify, or --all to audit the ledger", 0)
    file = TrustFile(target.gateway)
    with Client(target.gateway, target.key) as client:
        if reference is not None:
            _verify_revision(client, reference, file, public_key)
        else:
            _audit(client, file, public_key)


def _verify_revision(client: Client, reference: str, file: TrustFile, public_key: str | None) -> None:
    parsed = parse_reference(reference, "adapter")
    proof = client.prove(reference, file.seen_size)
    trusted = file.trusted(proof.signed.public_key, public_key)
    event, checkpoint = check_revision(proof, parsed, trusted)
    try:
        signed = check_statement(event, proven_keys(proof.signers, proof.event.sequence, checkpoint))
    except StatementRefused as error:
        raise NotProven(str(error)) from None
    file.remember(trusted.verifier, proof.signed.checkpoint)
    revision = event.revision.revision
    when = datetime.fromtimestamp(event.at_ms / 1000).astimezone().isoformat(" ", "seconds")
    _say(f"{event.head.name}@{revision.number}  {revision.digest}")
    _say(f"event {proof.event.sequence} of {checkpoint.size}: {event.kind} by {event.actor}, {when}")
    _say(f"proven: {len(proof.inclusion)} hashes lead from it to the signed root")
    _say(_told(signed, event.actor))
    _say_root(checkpoint, trusted, file, public_key)
    for line in not_checked(parsed, revision.number, signed, proof.event.sequence):
        _say(f"not checked: {line}")


def not_checked(reference: Reference, number: int, signed: tuple[SignedBy, ...], sequence: int) -> list[str]:
    """Return what the proof of one revision, of event ``sequence``, leaves to the registry's word."""
    left = []
    if reference.number is None and reference.digest is None:
        left.append(f"that {reference} means revision {number} now")
    between = sequence - 1 - min((one.sequence for one in signed), default=sequence)
    if between > 0:
        which = f"event {sequence - 1}" if between == 1 else f"any of events {sequence - between} to {sequence - 1}"
        left.append(f"whether {which} revoked a key that signed; `octavo verify --all` reads them (admin, auditor)")
    return left


def _audit(client: Client, file: TrustFile, public_key: str | None) -> None:
    page = client.audit(1, file.seen_size)
    trusted = file.trusted(page.signed.public_key, public_key)
    statements = StatementAuditor()
    auditor = Auditor(trusted, statements.take)
    auditor.take(page)
    note = page.signed.checkpoint
    while not auditor.is_done:
        auditor.take(client.audit(auditor.next_sequence, 0))
    checkpoint = auditor.finish()
    file.remember(trusted.verifier, note)
    _say(f"proven: all {checkpoint.size} events lead to the signed root; none is changed, missing or out of place")
    if auditor.num_withheld:
        _say(f"{auditor.num_withheld} of them are not for this key to read; of these only the hashes were seen")
    if auditor.num_sealed:
        _say(f"{auditor.num_sealed} of them are sealed and did not open, as it is with those of erased adapters")
    _say_root(checkpoint, trusted, file, public_key)
    _say_statements(statements)


def _told(signed: tuple[SignedBy, ...], actor: str) -> str:
    """Return who signed a revision's statement, in one line."""
    if not signed:
        return "no statement says how it came to be"
    by = " and ".join(
        f"{'the registry' if one.principal == REGISTRY_PRINCIPAL else one.principal} "
        f"(key {one.key_id[_SHORT_KEY]}, event {one.sequence})"
        for one in signed
    )
    alone = "" if any(one.principal == actor for one in signed) else " alone"
    return f"proven: its statement is signed by {by}{alone}"


def _say_statements(statements: StatementAuditor) -> None:
    """Print what became of all statements; raises ``NotProven`` when one does not verify."""
    _say(f"statements: {statements.num_by_pusher} signed by their people and the registry, "
         f"{statements.num_by_registry} by the registry alone, {statements.num_bad} bad")  # fmt: skip
    if statements.num_without:
        _say(f"{statements.num_without} revisions and evaluations have no statement")
    if statements.num_unknown:
        _say(f"{statements.num_unknown} statements are by people whose signing keys are not for this key to read")
    for problem in statements.problems:
        _say(problem)
    if statements.num_bad:
        raise NotProven(f"{statements.num_bad} revisions or evaluations have a statement that does not verify")


def _say_root(checkpoint: Checkpoint, trusted: Trusted, file: TrustFile, public_key: str | None) -> None:
    _say(f"root {checkpoint.root.hex()} of {checkpoint.origin}, {checkpoint.size} events")
    how = "as given" if public_key else "as pinned before" if file.is_pinned else "seen first and pinned now"
    _say(f"signed by {trusted.verifier} ({how})")
    if trusted.seen is not None:
        _say(f"consistent with the {trusted.seen.size} events that were signed when this was last verified")


def _say(line: str) -> None:
    Console().print(line, soft_wrap=True, highlight=False, markup=False)
