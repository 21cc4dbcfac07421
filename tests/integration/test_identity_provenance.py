"""Provenance in identity: what is signed is what was made, by whom the ledger says, and nothing else is let in."""

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.building import build, read_back
from octavo_shared import dsse, provenance
from octavo_shared.config import StoreSettings
from octavo_shared.dsse import Envelope, PublicKey, Signer
from octavo_shared.errors import AdapterNotFound, InvalidRequest, NotPermitted, ParentMoved, ProvenanceRefused
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.messages.provenance import Provenance
from octavo_shared.provenance import Facts, Made
from octavo_shared.references import Digest, Fingerprint
from support.adapters import TINY_BASE, config_json, tiny_weights
from support.identity_rig import Client, own_identity

NAME = "home/diary"
FACTS = provenance.parse_facts(
    b'{"data": {"digest": "sha256:' + b"4" * 64 + b'", "rows": 12}, "trainer": {"name": "peft", "version": "0.18"},'
    b' "hyperparameters": {"learning_rate": 0.0002, "steps": 40}}'
)


@dataclass
class Pusher:
    """Somebody with an API key and a signing key."""

    client: Client
    signer: Signer
    principal: str

    async def register(self, signer: Signer | None = None) -> None:
        await self.client.ask("register_signer", public_key=(signer or self.signer).public_key.pem)

    async def push(self, seed: int = 0, **fields: Any) -> Any:
        """Push with a statement about what is there now, with ``fields`` of ``Made`` changed."""
        alias = fields.pop("alias", "serving")
        begun = await self.client.ask("begin_upload", adapter=NAME)
        made = msgspec.structs.replace(await self.made(seed, begun.parent), **fields)
        return await self.client.push(NAME, seed, statement=self.signed(made), alias=alias)

    async def made(self, seed: int, parent: Digest | None) -> Made:
        built = read_back(build(config_json(), tiny_weights(seed), TINY_BASE, None))
        return Made(NAME, built.digest, TINY_BASE.fingerprint, parent, self.principal, built.header.config)

    def signed(self, made: Made, facts: Facts = FACTS) -> Envelope:
        return dsse.sign(dsse.STATEMENT_TYPE, provenance.build(made, 1_700_000_000_000, facts), self.signer)

    async def provenance(self, reference: str = NAME) -> Provenance:
        found = await self.client.ask("provenance", reference=reference)
        assert isinstance(found, Provenance)
        return found


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as admin:
        yield admin


@pytest.fixture
async def alice(admin: Client) -> Pusher:
    return await pusher(admin, "alice", 1)


async def pusher(admin: Client, user: str, number: int) -> Pusher:
    made = Pusher(await admin.new_key("home", user), Signer(bytes([number]) * 32), f"{user}@home")
    await made.register()
    return made


def good_keys(found: Provenance) -> list[PublicKey]:
    return [PublicKey.parse(one.public_key) for one in found.signers if one.is_valid]


async def test_a_signed_push_is_countersigned_and_verifies_from_what_is_shown(alice: Pusher) -> None:
    first = await alice.push(1)
    second = await alice.push(2)
    found = await alice.provenance(f"{NAME}@2")
    assert found.envelope is not None
    assert dsse.verify(found.envelope, good_keys(found)) == (alice.signer.key_id, found.signers[1].key_id)
    assert [one.principal for one in found.signers] == ["alice@home", "registry"]
    assert found.is_signed_by_pusher
    statement = provenance.parse(found.envelope.data)
    assert str(statement.subject[0].digest) == second.latest.digest
    assert statement.predicate.parent is not None
    assert str(statement.predicate.parent.digest) == first.latest.digest
    assert statement.predicate.data is not None
    assert statement.predicate.data.rows == 12


async def test_a_push_without_a_statement_gets_one_that_the_registry_signs_alone(alice: Pusher) -> None:
    info = await alice.client.push(NAME, 1)
    found = await alice.provenance()
    assert not found.is_signed_by_pusher
    assert found.envelope is not None
    assert [one.principal for one in found.signers] == ["registry"]
    assert dsse.verify(found.envelope, good_keys(found)) == (found.signers[0].key_id,)
    statement = provenance.parse(found.envelope.data)
    provenance.check_made(statement, msgspec.structs.replace(await alice.made(1, None), digest=info.latest.digest))
    assert statement.predicate.hyperparameters["rank"] == 4


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"digest": Digest("sha256:" + "9" * 64)}, "subject.digest"),
        ({"base": Fingerprint("sha256:" + "9" * 64)}, "predicate.base"),
        ({"adapter": "home/other"}, "subject.name"),
        ({"pushed_by": "bob@home"}, "predicate.pushedBy"),
        ({"config": None}, "predicate.making"),
    ],
)
async def test_a_statement_about_something_else_is_refused_by_field(
    alice: Pusher, changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(ProvenanceRefused) as caught:
        await alice.push(1, **changed)
    assert caught.value.fields["field"] == field
    with pytest.raises(AdapterNotFound):
        await alice.client.resolve(NAME)


async def test_another_parent_is_refused_and_said(alice: Pusher) -> None:
    first = await alice.push(1)
    with pytest.raises(ParentMoved) as caught:
        await alice.push(2, parent=None)
    assert caught.value.fields["parent"] == first.latest.digest


async def test_only_ones_own_registered_key_signs(admin: Client, alice: Pusher) -> None:
    bob = await pusher(admin, "bob", 2)
    for stranger in (bob.signer, Signer(bytes([9]) * 32)):
        with pytest.raises(InvalidRequest, match="keyid"):
            await Pusher(alice.client, stranger, "alice@home").push(1)
    # The same key may be two people's; it still does not sign for a third.
    await bob.register(alice.signer)
    await alice.push(1)


async def test_a_signature_that_is_not_of_this_payload_is_refused(alice: Pusher) -> None:
    made = await alice.made(1, None)
    envelope = alice.signed(made)
    other = alice.signed(msgspec.structs.replace(made, pushed_by="alice@home"), Facts())
    mixed = msgspec.structs.replace(envelope, signatures=other.signatures)
    with pytest.raises(InvalidRequest, match="sig"):
        await alice.client.push(NAME, 1, statement=mixed)
    as_text = dsse.sign("text/plain", envelope.data, alice.signer)
    with pytest.raises(InvalidRequest, match="payloadType"):
        await alice.client.push(NAME, 1, statement=as_text)
    huge = msgspec.structs.replace(envelope, payload="A" * 40_000)
    with pytest.raises(InvalidRequest, match="envelope"):
        await alice.client.push(NAME, 1, statement=huge)


async def test_a_revoked_key_signs_no_more_and_what_it_signed_stays_good(alice: Pusher) -> None:
    await alice.push(1)
    await alice.client.ask("revoke_signer", key_id=alice.signer.key_id)
    with pytest.raises(InvalidRequest, match="keyid"):
        await alice.push(2)
    found = await alice.provenance()
    assert found.is_signed_by_pusher
    assert found.signers[0].is_valid
    assert found.signers[0].revoked_at_ms is not None
    with pytest.raises(InvalidRequest, match="revoked"):
        await alice.register()
    renewed = Pusher(alice.client, Signer(bytes([7]) * 32), "alice@home")
    await renewed.register()
    await renewed.push(2)
    assert (await alice.provenance(f"{NAME}@1")).is_signed_by_pusher
    assert (await alice.provenance(f"{NAME}@2")).signers[0].key_id == renewed.signer.key_id


async def test_registering_and_revoking_again_are_no_events(admin: Client, alice: Pusher) -> None:
    before = await alice.client.ask("list_signers")
    await alice.register()
    await alice.client.ask("revoke_signer", key_id=alice.signer.key_id)
    revoked = await alice.client.ask("list_signers")
    await alice.client.ask("revoke_signer", key_id=alice.signer.key_id)
    assert (await alice.client.ask("list_signers")) == revoked
    assert len(before.signers) == len(revoked.signers) == 1
    assert (await admin.ask("list_signers", principal="registry")).signers[0].revoked_at_ms is None


async def test_a_key_that_is_narrowed_registers_none_and_one_without_the_scope_neither(admin: Client) -> None:
    strange = Signer(bytes([5]) * 32).public_key.pem
    for narrowing in ({"adapters": NAME}, {"scopes": (Scope.USE, Scope.AUDIT)}):
        narrow = await admin.new_key("home", "alice", Role.OWNER, **narrowing)
        with pytest.raises(NotPermitted):
            await narrow.ask("register_signer", public_key=strange)
        with pytest.raises(NotPermitted):
            await narrow.ask("revoke_signer", key_id="0" * 64)


async def test_signing_keys_of_others_are_for_admins(admin: Client, alice: Pusher) -> None:
    bob = await pusher(admin, "bob", 2)
    for verb, fields in (("list_signers", {}), ("revoke_signer", {"key_id": alice.signer.key_id})):
        with pytest.raises(NotPermitted):
            await bob.client.ask(verb, principal="alice@home", **fields)
    revoked = await admin.ask("revoke_signer", principal="alice@home", key_id=alice.signer.key_id)
    assert revoked.revoked_at_ms is not None
    with pytest.raises(InvalidRequest, match="key_id"):
        await bob.client.ask("revoke_signer", key_id=alice.signer.key_id)


async def test_provenance_is_for_those_who_see_the_adapter(admin: Client, alice: Pusher) -> None:
    await alice.push(1)
    bob = await pusher(admin, "bob", 2)
    for verb, fields in (("provenance", {"reference": NAME}), ("lineage", {"adapter": NAME})):
        with pytest.raises(AdapterNotFound):
            await bob.client.ask(verb, **fields)
    await alice.client.ask("grant", adapter=NAME, principal="bob@home")
    assert (await bob.provenance()).is_signed_by_pusher


async def test_a_branch_has_its_source_as_parent(admin: Client, alice: Pusher) -> None:
    info = await alice.push(1)
    made = Made("home/copy", info.latest.digest, TINY_BASE.fingerprint, info.latest.digest, "alice@home", None)
    await alice.client.ask("branch", source=NAME, adapter="home/copy", statement=alice.signed(made, Facts()))
    found = await alice.provenance("home/copy")
    assert found.is_signed_by_pusher
    assert found.envelope is not None
    predicate = provenance.parse(found.envelope.data).predicate
    assert predicate.making == "branch"
    assert predicate.parent is not None
    assert str(predicate.parent.digest) == info.latest.digest
    await alice.client.ask("branch", source=NAME, adapter="home/copy2")
    assert not (await alice.provenance("home/copy2")).is_signed_by_pusher
    with pytest.raises(ProvenanceRefused):
        await alice.client.ask("branch", source=NAME, adapter="home/copy3", statement=alice.signed(made, Facts()))


async def test_lineage_goes_through_branches_as_far_as_one_sees(admin: Client, alice: Pusher) -> None:
    await alice.push(1)
    await alice.push(2, alias=None)
    await alice.client.push(NAME, 3, alias=None)
    await alice.client.ask("grant", adapter=NAME, principal="bob@home")
    bob = await pusher(admin, "bob", 2)
    await bob.client.ask("branch", source=f"{NAME}@2", adapter="home/copy")
    whole = await bob.client.ask("lineage", adapter="home/copy")
    assert [(f"{node.name}@{node.number}", node.parent) for node in whole.nodes] == [
        ("home/copy@1", f"{NAME}@2"), (f"{NAME}@3", f"{NAME}@1"), (f"{NAME}@2", f"{NAME}@1"), (f"{NAME}@1", ""),
    ]  # fmt: skip
    assert [node.is_signed_by_pusher for node in whole.nodes] == [False, False, True, True]
    assert whole.is_whole
    assert not (await bob.client.ask("lineage", adapter="home/copy", num_max=2)).is_whole
    await alice.client.ask("revoke", adapter=NAME, principal="bob@home")
    alone = await bob.client.ask("lineage", adapter="home/copy")
    assert [(node.name, node.parent, node.is_branch) for node in alone.nodes] == [("home/copy", "", True)]


async def test_every_flipped_bit_in_a_stored_statement_is_noticed(alice: Pusher) -> None:
    await alice.push(1)
    found = await alice.provenance()
    assert found.envelope is not None
    stored, keys = dsse.encode(found.envelope), good_keys(found)
    for bit in random.Random(11).sample(range(8 * len(stored)), 400):
        damaged = bytearray(stored)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InvalidRequest):
            dsse.verify(dsse.decode(bytes(damaged)), keys)
