"""Adapters that begin together: what may be objected to is left out of it, and what fails holds up none of the others.

Real NATS and S3. What is left out is committed by itself; that this is then answered for itself is tested with imports.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.beginning import Beginning
from octavo_identity.building import Built
from octavo_identity.committing import UPLOAD_AGE_MS_MAX, Committed
from octavo_identity.data_keys import DataKeys
from octavo_identity.desk import Desk
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.projection import Projection
from octavo_identity.staging import CONFIG_FILE, PackPlace, Staging
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import DependencyUnavailable, InvalidRequest, OctavoError
from octavo_shared.messages.evaluation import Gate, Metric, Rule
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.usage import Quota
from octavo_shared.objects import ObjectMissing, ObjectStore
from octavo_shared.references import Digest, Fingerprint, parse_reference
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, admission, data_keys, own_identity, statements

Answer = Committed | OctavoError | None
Meanwhile = Callable[[], Awaitable[Any]]

GATE = Gate((Rule(Metric.EXACT, "suite", Digest(f"sha256:{1:064x}"), 0.5),))


class SlowStaging(Staging):
    """While it builds, or stores, something else happens; one pack is not stored."""

    while_building: Meanwhile | None = None
    while_storing: Meanwhile | None = None
    not_stored: str = "none"

    def __init__(self, store: ObjectStore, keys: DataKeys) -> None:
        super().__init__(store, keys)
        self.num_built = 0

    async def build_all(self, commits: Sequence[Commit]) -> list[Built | OctavoError]:
        built = await super().build_all(commits)
        self.num_built += len(built)
        if self.while_building is not None:
            await self.while_building()
        return built

    async def store_packs(self, packs: Sequence[tuple[PackPlace, bytes]]) -> list[OctavoError | None]:
        stored = await super().store_packs(packs)
        if self.while_storing is not None:
            await self.while_storing()
        return stored

    async def store_pack(self, place: PackPlace, pack: bytes) -> None:
        if place.adapter_id == self.not_stored:
            raise DependencyUnavailable("object storage")
        await super().store_pack(place, pack)


@dataclass
class World:
    """An identity, and beside it what begins adapters, as a replica of it would."""

    admin: Client
    alice: Client
    ids: Ids
    heads: HeadStore
    staging: SlowStaging
    beginning: Beginning

    async def commit(self, adapter: str, seed: int = 0, **fields: Any) -> Commit:
        upload_id = await self.alice.stage(adapter, seed)
        return self.commit_of(adapter, **{"upload_id": upload_id, **fields})

    def commit_of(self, adapter: str, **fields: Any) -> Commit:
        given = {
            "credential": self.alice.credential, "idempotency_key": f"import {adapter}", "adapter": adapter,
            "served_base": TINY_FINGERPRINT, "is_import": True,
        }  # fmt: skip
        return Commit(**{**given, **fields})

    async def last(self) -> int:
        return (await self.heads.state()).last_sequence


@asynccontextmanager
async def world(settings: StoreSettings, folder: Path) -> AsyncIterator[World]:
    async with own_identity(settings, folder) as admin:
        alice = await admin.new_key("home", "alice")
        # So that the base is registered already.
        await alice.push("home/first", 99)
        ids, projection = Ids(load_secret(folder / "identity")), Projection(folder / "view.sqlite")
        keys = data_keys(admin.bus, ids)
        heads = HeadStore(admin.bus, 1, keys)
        staging, desk = SlowStaging(admin.store, keys), Desk(heads, ids, projection)
        beginning = Beginning(desk, staging, statements(heads, ids), admission(admin.store, heads))
        try:
            yield World(admin, alice, ids, heads, staging, beginning)
        finally:
            staging.close()
            projection.close()


def fields_of(order: Commit) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(order).items() if name != "credential"}


def is_new(answer: Answer) -> bool:
    return isinstance(answer, Committed) and answer.is_new


async def test_what_begins_is_there_as_if_it_was_pushed(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with world(store_settings, tmp_path) as own:
        orders = [
            await own.commit("home/a0", 0, note="the first", tags=("work",)),
            await own.commit("home/a1", 1, alias=None),
            await own.commit("home/a2", 2, dtype="bf16", declared_base=TINY_FINGERPRINT),
        ]
        answers = await own.beginning.commit_all(orders)
        assert all(map(is_new, answers))
        for order in orders:
            with pytest.raises(InvalidRequest, match="committed or swept"):
                await own.alice.upload_key(order.upload_id)
            with pytest.raises(ObjectMissing):
                await own.admin.store.read(f"staging/{order.upload_id}/{CONFIG_FILE}", 1 << 20)
        for order, seed in zip(orders, range(3), strict=True):
            twin = await own.alice.push(
                f"{order.adapter}.twin", seed, note=order.note, tags=order.tags, alias=order.alias, dtype=order.dtype
            )
            (found,) = [one for one in (await own.alice.ask("list")).adapters if one.name == order.adapter]
            same = {"name": found.name, "adapter_id": found.adapter_id}
            created = {"created_at_ms": found.latest.created_at_ms}
            assert (
                msgspec.structs.replace(twin, **same, latest=msgspec.structs.replace(twin.latest, **created)) == found
            )
            stated = await own.alice.ask("provenance", reference=f"{order.adapter}@1")
            assert stated.digest == found.latest.digest
            assert [one.is_valid for one in stated.signers] == [True]
            # A repeated write is known again, by whichever way it comes.
            again = await own.alice.ask("commit", **fields_of(order))
            assert again.latest == found.latest
        adapter = (await own.alice.resolve("home/a0")).adapter
        assert adapter is not None
        assert len(await own.alice.pack_of(adapter)) > 0


async def test_what_may_be_objected_to_is_left_to_a_commit_by_itself(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with world(store_settings, tmp_path) as own:
        for tenant in ("gated", "small"):
            await own.admin.ask("create_tenant", tenant=tenant)
        await own.admin.ask("set_gate", target="gated", gate=GATE)
        await own.admin.ask("set_quota", tenant="small", limits={Quota.ADAPTERS: 5})
        gated, small, bob = [await own.admin.new_key(one, "bob") for one in ("gated", "small", "home")]
        narrow = await own.admin.new_key("home", "alice", adapters="home/mine*")
        await bob.push("home/bobs")
        await own.alice.push("home/gone")
        await own.alice.ask("erase", adapter="home/gone")

        old = own.ids.upload("alice@home", "home/x", wall_ms() - UPLOAD_AGE_MS_MAX - 1)
        own_upload = own.ids.upload("alice@home", "home/x", wall_ms())

        def of(client: Client, adapter: str) -> dict[str, Any]:
            whose = f"bob@{parse_reference(adapter).tenant}"
            return {"credential": client.credential, "upload_id": own.ids.upload(whose, adapter, wall_ms())}

        refused = {
            "its tenant has a gate": own.commit_of("gated/x", **of(gated, "gated/x")),
            "its tenant has quotas": own.commit_of("small/x", **of(small, "small/x")),
            "it is there": await own.commit("home/first"),
            "it is another's": own.commit_of(
                "home/bobs", upload_id=own.ids.upload("alice@home", "home/bobs", wall_ms())
            ),
            "it was erased": own.commit_of("home/gone", upload_id=own.ids.upload("alice@home", "home/gone", wall_ms())),
            "it is another tenant's": own.commit_of(
                "away/x", upload_id=own.ids.upload("alice@home", "away/x", wall_ms())
            ),
            "the key is not for it": own.commit_of("home/x", upload_id=own_upload, credential=narrow.credential),
            "an admin's key": own.commit_of(
                "home/x", upload_id=own.ids.upload("admin@octavo", "home/x", wall_ms()),
                credential=own.admin.credential,
            ),
            "its upload is old": own.commit_of("home/x", upload_id=old),
            "its upload is another's": own.commit_of("home/y", upload_id=own_upload),
            "it has no name": own.commit_of("home", upload_id=own_upload),
            "it names a revision": own.commit_of("home/x@1", upload_id=own_upload),
            "its note is long": own.commit_of("home/x", upload_id=own_upload, note="n" * 1_025),
            "its alias is none": own.commit_of("home/x", upload_id=own_upload, alias="No Alias"),
            "its tag is none": own.commit_of("home/x", upload_id=own_upload, tags=("No Tag",)),
            "its key is empty": own.commit_of("home/x", upload_id=own_upload, idempotency_key=""),
            "it has a statement": own.commit_of("home/x", upload_id=own_upload, statement=Envelope("", "", ())),
            "its upload is no upload": own.commit_of("home/x", upload_id="ü" * 76),
            "its base is no base": own.commit_of("home/x", upload_id=own_upload, served_base=Fingerprint("../\0")),
            "its key is long": own.commit_of("home/x", upload_id=own_upload, idempotency_key="k" * 257),
            "its dtype is none": await own.commit("home/dtype", dtype="f8"),
            "its base is unknown": own.commit_of(
                "home/x", upload_id=own_upload, served_base=Fingerprint(f"sha256:{7:064x}")
            ),
            "its tags are many": await own.commit("home/tags", tags=tuple(f"t{number}" for number in range(17))),
            "there is no upload": own.commit_of("home/x", upload_id=own_upload),
        }  # fmt: skip
        before = await own.last()
        for why, order in refused.items():
            plain = await own.commit(f"home/{why.replace(' ', '-').replace(chr(39), '')}"[:40])
            built = own.staging.num_built
            answers = await own.beginning.commit_all([order, plain])
            assert (answers[0], is_new(answers[1])) == (None, True), why
            is_built = why in ("its tags are many", "its dtype is none", "there is no upload")
            assert own.staging.num_built - built == 1 + is_built, why
        assert await own.last() == before + len(refused)


@pytest.mark.parametrize("what", ["a gate", "quotas", "a retired base"])
async def test_what_changes_while_packs_are_built_counts(
    what: str, store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with world(store_settings, tmp_path) as own:

        async def meanwhile() -> None:
            if what == "a gate":
                await own.admin.ask("set_gate", target="home", gate=GATE)
            elif what == "quotas":
                await own.admin.ask("set_quota", tenant="home", limits={Quota.PUSHES_PER_DAY: 1})
            else:
                await own.admin.ask("retire_base", base=TINY_FINGERPRINT)

        own.staging.while_building = meanwhile
        orders = [await own.commit(f"home/a{number}", number) for number in range(2)]
        before = await own.last()
        assert await own.beginning.commit_all(orders) == [None, None]
        assert await own.last() == before + 1, "of the meantime"


async def test_who_was_first_meanwhile_holds_up_none_of_the_others(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async with world(store_settings, tmp_path) as own:

        async def meanwhile() -> None:
            await own.alice.push("home/a1", 7)

        own.staging.while_storing = meanwhile
        orders = [await own.commit(f"home/a{number}", number) for number in range(3)]
        answers = await own.beginning.commit_all(orders)
        assert [is_new(answer) for answer in answers] == [True, False, True]
        assert answers[1] is None
        # Its own upload is still there for the commit by itself.
        assert (await own.alice.ask("commit", **fields_of(orders[1]))).num_revisions == 2


async def test_what_the_stores_refuse_is_said_and_holds_up_none(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with world(store_settings, tmp_path) as own:
        own.staging.not_stored = own.ids.adapter("home", "a1")
        orders = [await own.commit(f"home/a{number}", number) for number in range(3)]
        before = await own.last()
        answers = await own.beginning.commit_all(orders)
        assert [is_new(answer) for answer in answers] == [True, False, True]
        assert isinstance(answers[1], DependencyUnavailable)
        assert await own.last() == before + 2


async def test_nothing_is_begun_while_the_registry_does_not_answer(
    store_settings: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(store_settings, tmp_path) as own:

        async def taken(of: Sequence[str]) -> Collection[str]:
            raise DependencyUnavailable("JetStream")

        monkeypatch.setattr(own.heads, "taken", taken)
        orders = [await own.commit(f"home/a{number}", number) for number in range(2)]
        assert await own.beginning.commit_all(orders) == [None, None]
        assert own.staging.num_built == 0


async def test_what_is_taken_is_told_for_all_at_once(store_settings: StoreSettings, tmp_path: Path) -> None:
    async with world(store_settings, tmp_path) as own:
        places = Desk(own.heads, own.ids, Projection(tmp_path / "other.sqlite")).registry.places
        subjects = {name: places.now(parse_reference(f"home/{name}")).subject for name in ("first", "x", "y")}
        assert [*await own.heads.taken([*subjects.values()])] == [subjects["first"]]
        assert not await own.heads.taken([subjects["x"]])
        assert not await own.heads.taken([])
