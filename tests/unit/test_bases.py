"""How bases are named and what became of them; and that what sits on each is counted as it changes."""

import random
import sqlite3
from collections import Counter

import msgspec
import pytest

from octavo_identity import sittings
from octavo_identity.bases import Book, state_of, superseded
from octavo_identity.records import AdapterHead, BasesHead, RegisteredBase, StoredRevision
from octavo_shared.bases import base_label, find_base, labels_of
from octavo_shared.errors import BaseRetired, BaseUnknown, InvalidRequest
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.bases import BaseState
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId

OLD, NEW, NEWER = (Fingerprint(f"sha256:{mark * 64}") for mark in "abc")
TWIN = Fingerprint("sha256:" + "a" * 20 + "b" * 44)
NAMES = {OLD: "smol", NEW: "smol", NEWER: "big-One"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (OLD, OLD),
        ("smol@aaaaaaaaaaaa", OLD),
        ("smol@" + "b" * 6, NEW),
        ("cccccc", NEWER),
        ("big-One", NEWER),
        ("@bbbbbb", NEW),
    ],
)
def test_a_base_is_meant_by_fingerprint_label_digits_or_a_name_of_its_own(text: str, meant: Fingerprint) -> None:
    assert find_base(text, NAMES) == meant


@pytest.mark.parametrize("text", ["", "bigone", "smol@cccccc", "smol@aaaaa", "aaaaa", "sha256:" + "d" * 64, "smol@"])
def test_what_means_no_base_is_unknown(text: str) -> None:
    with pytest.raises(BaseUnknown):
        find_base(text, NAMES)


def test_what_may_mean_several_bases_is_refused_with_their_labels() -> None:
    with pytest.raises(InvalidRequest, match=r"'by' may be several bases: smol@aaaaaaaaaaaa, smol@bbbbbbbbbbbb"):
        find_base("smol", NAMES, "by")
    with pytest.raises(InvalidRequest, match="may be several"):
        find_base("aaaaaaaaaaaa", NAMES | {TWIN: "other"})
    with pytest.raises(InvalidRequest, match="longer than"):
        find_base("x" * 201, NAMES)


def test_labels_have_a_name_where_there_is_one_and_are_cut_where_there_are_many() -> None:
    assert base_label("", OLD) == "a" * 12
    many = {Fingerprint(f"sha256:{number:064x}"): f"n{number:02}" for number in range(10)}
    assert labels_of(many).endswith("n07@000000000000 and 2 more")


def book(**changed: RegisteredBase) -> Book:
    return Book(BasesHead(tuple(changed.get(name, base(fingerprint)) for fingerprint, name in
                                ((OLD, "old"), (NEW, "new"), (NEWER, "newer")))))  # fmt: skip


def base(fingerprint: Fingerprint, **fields: object) -> RegisteredBase:
    return msgspec.structs.replace(RegisteredBase(fingerprint, NAMES[fingerprint], 1), **fields)


def test_a_chain_of_bases_ends_in_what_is_to_be_trained_for() -> None:
    chain = book(old=base(OLD, superseded_by=NEW), new=base(NEW, superseded_by=NEWER))
    assert [chain.successor_label(one) for one in chain.head.bases] == ["big-One@cccccccccccc"] * 2 + [""]
    assert chain.outdated() == (OLD, NEW)
    (warning,) = chain.warnings(OLD)
    assert warning == ("base smol@aaaaaaaaaaaa is superseded by big-One@cccccccccccc: train the next revision for that")
    assert chain.warnings(NEWER) == ()
    chain.check_new(OLD)
    with pytest.raises(BaseUnknown):
        chain.check_new(TWIN)


def test_a_base_is_superseded_by_another_one_that_is_current_so_no_chain_is_a_circle() -> None:
    old, new = base(OLD), base(NEW)
    assert superseded(old, new).superseded_by == NEW
    for by in (old, base(NEW, superseded_by=OLD), base(NEW, retired_at_ms=2)):
        with pytest.raises(InvalidRequest, match="by"):
            superseded(old, by)


def test_what_is_retired_takes_nothing_new_and_says_what_to_train_for() -> None:
    gone = book(old=base(OLD, superseded_by=NEW, retired_at_ms=5))
    assert state_of(gone.head.bases[0]) is BaseState.RETIRED
    with pytest.raises(BaseRetired, match=r"smol@aaaaaaaaaaaa is retired .* train for smol@bbbbbbbbbbbb"):
        gone.check_new(OLD)
    assert gone.outdated() == (OLD,)


def random_head(source: random.Random, name: str) -> AdapterHead:
    stored = []
    for number in range(1, source.randint(1, 5) + 1):
        on = source.choice((OLD, NEW, NEWER))
        revision = Revision(number, Digest(f"sha256:{number:064x}"), on, 1, 4, 2, "F32", "a@b", 1)
        stored.append(StoredRevision(revision, "packs/x"))
    numbers = [one.revision.number for one in stored]
    aliases = {alias: source.choice(numbers) for alias in ("serving", "canary", "stable") if source.random() < 0.6}
    tenant = TenantId(name.split("/")[0])
    return AdapterHead(AdapterId(name), tenant, name, "a@b", len(stored), tuple(stored), aliases)


def test_counts_are_what_counting_all_heads_gives_whatever_changed() -> None:
    source = random.Random(7)
    file = sqlite3.connect(":memory:")
    file.executescript(sittings.SCHEMA)
    heads: dict[str, AdapterHead] = {}
    for _ in range(300):
        sitting = sittings.Sittings(file)
        for _ in range(source.randint(1, 4)):
            name = f"{source.choice(('home', 'away'))}/{source.randint(0, 9)}"
            if source.random() < 0.2:
                heads.pop(name, None)
                sitting.put(name, TenantId(name.split("/")[0]), set())
            else:
                heads[name] = random_head(source, name)
                sitting.put(name, heads[name].tenant_id, sittings.rows_of(heads[name]))
        sitting.write()
        for tenant in (None, "home", "away"):
            seen = [head for head in heads.values() if tenant in (None, head.tenant_id)]
            latest = Counter(head.revisions[-1].revision.base for head in seen)
            named = Counter(
                head.revisions[number - 1].revision.base for head in seen for number in set(head.aliases.values())
            )
            told = sittings.counts(file, TenantId(tenant) if tenant else None)
            assert {on: one.num_adapters for on, one in told.items() if one.num_adapters} == latest
            assert {on: one.num_serving for on, one in told.items() if one.num_serving} == named
    file.close()
