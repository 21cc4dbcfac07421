"""What the projection's file counts: each event once, though a batch is taken over again, and in whatever order."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from octavo_identity.catalogue import Catalogue, Position
from octavo_identity.records import AdapterHead, ErasedHead, RegistryEvent, StoredRevision, TenantHead, object_key
from octavo_identity.usage_tables import (
    Counted,
    Held,
    adapter_usage,
    begin_usage,
    count_usage,
    exhausted,
    forget_days,
    held_by,
    is_counted,
    tenant_usage,
    usage_position,
)
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.usage import DAY_MS, Quotas, UsageRecord, UsageRow, left_of_day_s
from octavo_shared.references import AdapterId, Digest, TenantId
from support.adapters import TINY_FINGERPRINT

HOME, DIARY, POEMS = TenantId("home"), AdapterId("d" * 32), AdapterId("e" * 32)
TODAY = 20_000


def pushed(adapter_id: AdapterId, number: int = 1, pack_bytes: int = 100, day: int = TODAY) -> RegistryEvent:
    digest = Digest(f"sha256:{number:064x}")
    revision = Revision(number, digest, TINY_FINGERPRINT, pack_bytes, 4, 2, "F32", "alice@home", 1)
    stored = StoredRevision(revision, object_key(adapter_id, number, "aa", "bb"))
    head = AdapterHead(adapter_id, HOME, f"home/{adapter_id[0]}", "alice@home", number, (stored,), {})
    return RegistryEvent("revision_added", "alice@home", day * DAY_MS + 5, 0, head, "", stored)


def erased(adapter_id: AdapterId, receipt: bytes = b"") -> RegistryEvent:
    return RegistryEvent("erasing", "owner", 1, 0, ErasedHead(adapter_id, HOME, 1, "", "", 1, receipt))


def applied(catalogue: Catalogue, events: Iterable[RegistryEvent], first: int = 1) -> None:
    numbered = list(zip(events, range(first, 1_000), strict=False))
    catalogue.apply(numbered, Position("then", numbered[-1][1], 0))


def used(catalogue: Catalogue, number: int, *rows: UsageRow, sequence: int | None = None, gateway: str = "gw") -> None:
    record, at = UsageRecord(gateway, number, rows), sequence or number
    catalogue.change(partial(count_usage, records=[(at, record)], until=at))


def of(adapter_id: str, day: int = TODAY) -> UsageRow:
    return UsageRow(HOME, AdapterId(adapter_id), day, 1, 10, 100)


def told(catalogue: Catalogue, first_day: int = 0) -> Counted:
    return catalogue.look(partial(tenant_usage, tenant_id=HOME, first_day=first_day))


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterable[Catalogue]:
    made = Catalogue(tmp_path / "view")
    made.change(partial(begin_usage, created="then"))
    yield made
    made.close()


def test_a_batch_that_is_taken_over_again_counts_once(catalogue: Catalogue) -> None:
    events = [pushed(DIARY), pushed(DIARY, 2), pushed(POEMS), erased(POEMS), erased(POEMS, b"receipt")]
    # Its end was not seen: it is read and taken over once more, alone and with what came behind it.
    applied(catalogue, events)
    applied(catalogue, events)
    applied(catalogue, [*events, pushed(DIARY, 3)])
    assert told(catalogue) == Counted([(TODAY, 0, 0, 0, 4)], 1, 300)


def test_a_record_counts_once_by_its_sequence_and_by_its_number(catalogue: Catalogue) -> None:
    used(catalogue, 1, of(DIARY))
    used(catalogue, 1, of(DIARY))
    used(catalogue, 1, of(DIARY), sequence=2)
    used(catalogue, 2, of(DIARY), sequence=3)
    used(catalogue, 1, of(DIARY), sequence=4, gateway="other")
    # Sequences only ever go on, also where a batch is taken over again whose numbers are not known any more.
    used(catalogue, 9, of(DIARY), sequence=2)
    assert told(catalogue).days == [(TODAY, 3, 30, 300, 0)]
    assert catalogue.look(usage_position) == ("then", 4)


@pytest.mark.parametrize("is_erased_first", [True, False])
def test_an_erased_adapters_rows_go_and_its_tenants_stay_whichever_stream_comes_first(
    catalogue: Catalogue, is_erased_first: bool
) -> None:
    applied(catalogue, [pushed(DIARY)])
    if is_erased_first:
        applied(catalogue, [erased(DIARY)], 2)
    used(catalogue, 1, of(DIARY), of(""))
    if not is_erased_first:
        applied(catalogue, [erased(DIARY)], 2)
    assert told(catalogue) == Counted([(TODAY, 2, 20, 200, 1)], 0, 0)
    assert catalogue.look(partial(adapter_usage, adapter_id=DIARY, first_day=0)) == Counted([], 0, 0)


def test_another_stream_of_usage_is_counted_from_its_beginning_and_the_registry_goes_on(catalogue: Catalogue) -> None:
    applied(catalogue, [pushed(DIARY)])
    used(catalogue, 1, of(DIARY))
    catalogue.change(partial(begin_usage, created="now"))
    assert told(catalogue).days == [(TODAY, 0, 0, 0, 1)]
    used(catalogue, 1, of(DIARY))
    assert told(catalogue).days == [(TODAY, 1, 10, 100, 1)]


def test_days_are_told_from_the_first_that_is_asked_for_and_forgotten_when_nobody_may_ask(catalogue: Catalogue) -> None:
    applied(catalogue, [pushed(DIARY, day=TODAY - 2), pushed(DIARY, 2)])
    used(catalogue, 1, of(DIARY, TODAY - 1), of(DIARY, TODAY - 3))
    all_days = [(TODAY, 0, 0, 0, 1), (TODAY - 1, 1, 10, 100, 0), (TODAY - 2, 0, 0, 0, 1), (TODAY - 3, 1, 10, 100, 0)]
    for first, num_days in ((0, 4), (TODAY - 2, 3), (TODAY, 1)):
        assert told(catalogue, first).days == all_days[:num_days]
        asked = partial(adapter_usage, adapter_id=DIARY, first_day=first)
        assert catalogue.look(asked) == Counted(all_days[:num_days], 1, 200)
    catalogue.change(partial(forget_days, before=TODAY - 2))
    assert told(catalogue).days == all_days[:3]


def test_who_has_used_its_tokens_is_found_by_the_day(catalogue: Catalogue) -> None:
    def set_to(tokens: int | None, sequence: int) -> None:
        head = TenantHead(HOME, "home", quotas=Quotas(tokens_per_day=tokens))
        applied(catalogue, [RegistryEvent("quota_set", "admin", 1, 0, head)], sequence)

    def over(day: int = TODAY) -> dict[TenantId, tuple[int, int]]:
        return catalogue.look(partial(exhausted, day=day))

    used(catalogue, 1, of(DIARY), of(DIARY, TODAY - 1))
    assert over() == {}
    set_to(111, 1)
    assert over() == {}
    set_to(110, 2)
    assert over() == over(TODAY - 1) == {HOME: (110, 110)}
    assert over(TODAY + 1) == {}
    set_to(0, 3)
    assert over(TODAY + 1) == {HOME: (0, 0)}
    set_to(None, 4)
    assert over() == {}


def test_what_a_tenant_holds_is_seen_with_the_revision_that_adds_to_it(catalogue: Catalogue) -> None:
    held, seen = partial(held_by, tenant_id=HOME, day=TODAY), partial(is_counted, adapter_id=DIARY, number=1)
    assert (catalogue.look(held), catalogue.look(seen)) == (Held(0, 0, 0), False)
    applied(catalogue, [pushed(DIARY)])
    assert (catalogue.look(held), catalogue.look(seen)) == (Held(1, 100, 1), True)
    assert not catalogue.look(partial(is_counted, adapter_id=DIARY, number=2))
    applied(catalogue, [erased(DIARY)], 2)
    # It is not to be waited for any more: what it held was counted, and taken off again.
    assert (catalogue.look(held), catalogue.look(seen)) == (Held(0, 0, 1), True)


@pytest.mark.parametrize(("at_ms", "left_s"), [(0, 86_400), (1, 86_400), (1_000, 86_399), (DAY_MS - 1, 1)])
def test_what_is_left_of_a_day_is_told_in_whole_seconds_and_never_too_short(at_ms: int, left_s: int) -> None:
    assert left_of_day_s(at_ms) == left_s
