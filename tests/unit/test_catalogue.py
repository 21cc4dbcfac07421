import sqlite3
from pathlib import Path

import pytest

from octavo_identity.catalogue import Catalogue, Hint, Position
from octavo_identity.records import AdapterHead, RegistryEvent, StoredRevision, object_key
from octavo_identity.search import Search
from octavo_shared.messages.adapters import Revision
from octavo_shared.references import AdapterId, Digest, TenantId
from support.adapters import TINY_FINGERPRINT


def adapter_id(name: str) -> AdapterId:
    return AdapterId(name.encode().hex().rjust(32, "0")[-32:])


def digest(number: int) -> Digest:
    return Digest(f"sha256:{number:064x}")


def event(name: str, owner: str, *grants: str, number: int = 1) -> RegistryEvent:
    """A push of revision ``number``, with the head that it leaves behind."""
    revision = Revision(number, digest(number), TINY_FINGERPRINT, 1, 4, 2, "F32", owner, 1)
    stored = StoredRevision(revision, object_key(adapter_id(name), number, "aa", "bb"))
    head = AdapterHead(adapter_id(name), TenantId("t"), name, owner, number, (stored,), {"serving": number}, grants)
    return RegistryEvent("revision_added", owner, 1, 0, head, "", stored)


def filled(path: Path, *events: RegistryEvent) -> Catalogue:
    catalogue = Catalogue(path)
    catalogue.apply(zip(events, range(1, len(events) + 1), strict=True), Position("then", len(events), 0))
    return catalogue


def names(catalogue: Catalogue, principal: str, after: str = "", num_max: int = 100) -> list[str]:
    return [head.name for head in catalogue.find(Search(), (principal, principal.split("@")[1]), after, num_max).heads]


def test_a_page_merges_what_is_ones_own_and_what_ones_tenant_was_granted(tmp_path: Path) -> None:
    catalogue = filled(
        tmp_path / "view",
        event("home/d", "alice@home"),
        event("away/a", "bob@away", "*@home"),
        event("away/b", "bob@away", "alice@home", "*@home"),
        event("away/c", "bob@away", "carol@home"),
        event("home/e", "carol@home", "*@home", "*@away"),
        event("home/f", "alice@home", "*@home"),
    )
    usable = ["away/a", "away/b", "home/d", "home/e", "home/f"]
    assert names(catalogue, "alice@home") == usable
    for num_max in range(1, 7):
        assert names(catalogue, "alice@home", num_max=num_max) == usable[:num_max]
        for position, after in enumerate(usable, 1):
            assert names(catalogue, "alice@home", after, num_max) == usable[position : position + num_max]
    assert names(catalogue, "nobody@nowhere") == []
    catalogue.close()


def test_a_search_looks_at_so_many_names_and_says_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo_identity.adapter_tables._NAMES_MAX", 10)
    catalogue = filled(
        tmp_path / "view",
        *(event(f"home/a{number:02}", "bob@home" if number == 25 else "alice@home", "*@home") for number in range(30)),
        event("away/a", "bob@home"),
    )
    search, reader = Search(tenant="home", owner="bob@home"), ("carol@home", "home")
    for who in (reader, None):
        after, found, stops = "", [], []
        while True:
            page = catalogue.find(search, who, after, 5)
            found += [head.name for head in page.heads]
            if page.next_after is None:
                break
            after = page.next_after
            stops.append(after)
        assert found == ["home/a25"]
        assert stops == ["home/a09", "home/a19", "home/a29"]
    assert catalogue.find(Search(owner="bob@home"), ("mallory@away", "away"), "", 5).heads == []
    catalogue.close()


def test_the_newest_head_decides_who_is_a_user(tmp_path: Path) -> None:
    catalogue = filled(tmp_path / "view", event("home/d", "alice@home", "bob@away"), event("home/d", "alice@home"))
    assert names(catalogue, "bob@away") == []
    assert names(catalogue, "alice@home") == ["home/d"]
    catalogue.close()


def test_a_revision_is_hinted_at_by_number_and_by_the_newest_of_a_digest(tmp_path: Path) -> None:
    catalogue = filled(
        tmp_path / "view",
        event("home/d", "alice@home", number=1),
        event("home/e", "alice@home", number=1),
        event("home/d", "alice@home", number=2),
    )
    one = adapter_id("home/d")
    assert catalogue.find_revision(one, 1, None) == Hint(1, 2)
    assert catalogue.find_revision(one, None, digest(2)) == Hint(3, 2)
    assert catalogue.find_revision(one, 3, None) == Hint(None, 2)
    assert catalogue.find_revision(adapter_id("home/x"), None, digest(1)) == Hint(None, 0)
    catalogue.close()


def test_only_packs_that_no_revision_names_are_unnamed(tmp_path: Path) -> None:
    catalogue = filled(tmp_path / "view", event("home/d", "alice@home"))
    named = object_key(adapter_id("home/d"), 1, "aa", "bb")
    others = [named + "0", object_key(adapter_id("home/d"), 2, "aa", "bb"), object_key(adapter_id("x"), 1, "aa", "bb")]
    assert catalogue.unnamed_packs([named, "packs/readme", *others]) == others
    catalogue.close()


def test_a_batch_is_applied_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    catalogue = filled(tmp_path / "view", event("home/d", "alice@home"))
    broken = [(event("home/e", "alice@home"), 2), (event("home/f", None), 3)]  # type: ignore[arg-type]
    with pytest.raises((sqlite3.Error, TypeError)):
        catalogue.apply(broken, Position("then", 3, 0))
    assert names(catalogue, "alice@home") == ["home/d"]
    assert catalogue.position() == Position("then", 1, 0)
    catalogue.close()


def test_what_was_applied_is_there_after_a_restart_and_gone_after_beginning_again(tmp_path: Path) -> None:
    filled(tmp_path / "view", event("home/d", "alice@home")).close()
    again = Catalogue(tmp_path / "view")
    assert again.position() == Position("then", 1, 0)
    assert names(again, "alice@home") == ["home/d"]
    again.begin_again(Position("now", 0, 7))
    assert names(again, "alice@home") == []
    again.close()
    again = Catalogue(tmp_path / "view")
    assert again.position() == Position("now", 0, 7)
    again.close()


def test_leaf_hashes_come_in_order_and_may_be_taken_over_again(tmp_path: Path) -> None:
    catalogue = filled(tmp_path / "view")
    leaves = [(sequence, bytes([sequence]) * 32) for sequence in range(1, 8)]
    for first in (0, 2):
        # A batch whose end was not seen is read from the stream and taken over once more.
        catalogue.apply((), Position("then", 7, 0), leaves[first:])
    assert catalogue.leaf_hashes(3, 2) == [leaf for _, leaf in leaves[2:5]]
    assert catalogue.leaf_hashes(100, 5) == [leaf for _, leaf in leaves[5:]]
    catalogue.begin_again(Position("now", 0, 0))
    assert catalogue.leaf_hashes(100, 0) == []
    catalogue.close()


@pytest.mark.parametrize("damage", ["garbage", "cut", "other form", "emptied table"])
def test_a_file_that_cannot_be_used_is_begun_anew(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "view"
    filled(path, *(event(f"home/a{number}", "alice@home") for number in range(50))).close()
    if damage == "garbage":
        path.write_bytes(b"this was a database" * 100)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 0" if damage == "other form" else "DROP TABLE position")
        database.close()
    catalogue = Catalogue(path)
    catalogue.apply([(event("home/d", "alice@home"), 1)], Position("then", 1, 0))
    assert names(catalogue, "alice@home")[-1] == "home/d"
    assert catalogue.position().sequence == 1
    catalogue.close()


def test_a_crash_of_the_machine_cannot_damage_the_file(tmp_path: Path) -> None:
    catalogue = filled(tmp_path / "view")
    assert catalogue._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert catalogue._writer.execute("PRAGMA synchronous").fetchone() == (1,)
    catalogue.close()


def test_what_is_first_of_its_adapter_and_what_is_not_leave_the_same_rows(tmp_path: Path) -> None:
    pushes = [event("home/a", "alice@home", "bob@home"), event("home/b", "alice@home")]
    later = [event("home/a", "alice@home", "bob@home", number=2)]
    tables = ("adapters", "tags", "users", "sittings", "base_counts")

    def rows(catalogue: Catalogue) -> list[list[tuple[object, ...]]]:
        return [catalogue._reader.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in tables]

    once = filled(tmp_path / "once", *pushes, *later)
    twice = filled(tmp_path / "twice", *pushes, *pushes, *later)
    assert rows(once) == rows(twice)
    assert names(twice, "bob@home") == ["home/a"]
    (counts,) = twice.count_bases(None).values()
    assert (counts.num_adapters, counts.num_serving) == (2, 2)
    for catalogue in (once, twice):
        catalogue.close()
