"""Claims about the residency manager's pure parts: view, popularity and planner."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_residency.planner import HIGH_WATER, LOW_WATER, Planner
from octavo_residency.popularity import Popularity
from octavo_residency.view import FleetView
from octavo_shared.messages.fleet import (
    HEARTBEAT_TIMEOUT_MS,
    Demand,
    Evict,
    Heartbeat,
    Placed,
    Prefetch,
    TierUse,
    WorkerState,
)
from octavo_shared.messages.generation import AdapterHandle, Tier
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId, WorkerId

BASE = Fingerprint("sha256:" + "0" * 64)
W = WorkerId("w1")
EMPTY = TierUse(0, 100)


def digest(name: str) -> Digest:
    return Digest("sha256:" + name * 64)


def placed(name: str, tier: Tier = Tier.RESIDENT, size_bytes: int = 10, num_pins: int = 0) -> Placed:
    return Placed(AdapterId(name), digest(name), tier, size_bytes, num_pins)


def beat(
    *held: Placed,
    epoch: int = 1,
    sequence: int = 1,
    is_snapshot: bool = True,
    resident: TierUse = EMPTY,
    warm: TierUse = EMPTY,
    local: TierUse = EMPTY,
) -> Heartbeat:
    return Heartbeat(
        W, epoch, sequence, WorkerState.READY, BASE, "tiny", 0, 0, 8, 0, 0, 0,
        resident=resident, warm=warm, local=local, placed=held, is_snapshot=is_snapshot,
    )  # fmt: skip


def demand(name: str) -> Demand:
    handle = AdapterHandle(AdapterId(name), TenantId("t"), 1, digest(name), BASE, f"packs/{name}", 10)
    return Demand(handle, W, "r1")


def key(name: str) -> tuple[AdapterId, Digest]:
    return AdapterId(name), digest(name)


def test_deltas_change_the_view_and_cold_means_gone() -> None:
    fleet = FleetView()
    fleet.heard(beat(placed("a"), placed("b")), 0)
    fleet.heard(beat(placed("a", Tier.COLD), placed("b", Tier.WARM), sequence=2, is_snapshot=False), 1)
    view = fleet.worker(W)
    assert view is not None
    assert (view.tier_of(key("a")), view.tier_of(key("b"))) == (Tier.COLD, Tier.WARM)


def test_missed_heartbeat_makes_the_view_incomplete_until_the_next_snapshot() -> None:
    fleet = FleetView()
    fleet.heard(beat(), 0)
    fleet.heard(beat(sequence=3, is_snapshot=False), 1)
    assert fleet.incomplete() == [W]
    fleet.heard(beat(sequence=4), 2)
    assert fleet.incomplete() == []


def test_stale_heartbeats_change_nothing() -> None:
    fleet = FleetView()
    fleet.heard(beat(placed("a"), epoch=2, sequence=5), 0)
    assert fleet.heard(beat(epoch=2, sequence=5), 1) is None
    assert fleet.heard(beat(epoch=1, sequence=9), 1) is None
    assert fleet.holders(key("a")) == [W]


def test_new_epoch_starts_from_nothing() -> None:
    fleet = FleetView()
    fleet.heard(beat(placed("a")), 0)
    fleet.heard(beat(epoch=2, is_snapshot=False), 1)
    assert fleet.holders(key("a")) == []
    assert fleet.incomplete() == [W]


def test_silent_worker_is_forgotten() -> None:
    fleet = FleetView()
    fleet.heard(beat(), 0)
    assert fleet.forget_silent(HEARTBEAT_TIMEOUT_MS) == []
    assert fleet.forget_silent(HEARTBEAT_TIMEOUT_MS + 1) == [W]


def test_popularity_halves_with_time_and_is_bounded() -> None:
    popularity = Popularity(half_life_ms=100, num_adapters_max=2)
    popularity.asked(AdapterId("a"), 0)
    popularity.asked(AdapterId("a"), 0)
    assert popularity.frequency(AdapterId("a"), 100) == 1.0
    popularity.asked(AdapterId("b"), 0)
    popularity.asked(AdapterId("c"), 0)
    assert len(popularity) == 2
    assert popularity.frequency(AdapterId("a"), 0) == 0.0


def test_demand_for_what_is_not_resident_orders_a_prefetch_once() -> None:
    planner, fleet = Planner(Popularity()), FleetView()
    view = fleet.heard(beat(placed("a", Tier.WARM)), 0)
    assert isinstance(planner.on_demand(demand("a"), view, 0), Prefetch)
    assert planner.on_demand(demand("a"), view, 1) is None
    assert isinstance(planner.on_demand(demand("a"), view, 10_000), Prefetch)
    assert planner.ordered_to(key("a"), 10_000) == [W]


def test_what_was_ordered_long_ago_is_no_longer_on_its_way() -> None:
    planner = Planner(Popularity())
    planner.on_demand(demand("a"), None, 0)
    assert planner.ordered_to(key("b"), 1) == []
    assert planner.ordered_to(key("a"), 59_000) == [W]
    assert planner.ordered_to(key("a"), 61_000) == []


def test_demand_for_what_is_resident_orders_nothing() -> None:
    fleet = FleetView()
    assert Planner(Popularity()).on_demand(demand("a"), fleet.heard(beat(placed("a")), 0), 0) is None


def test_demand_at_an_unknown_worker_is_ordered_too() -> None:
    assert isinstance(Planner(Popularity()).on_demand(demand("a"), None, 0), Prefetch)


def test_full_tier_loses_the_least_wanted_first() -> None:
    planner, fleet = Planner(Popularity()), FleetView()
    names = "abcdefghij"
    view = fleet.heard(beat(*map(placed, names), resident=TierUse(100, 100)), 0)
    assert view is not None
    for name in names[2:]:
        for _ in range(3):
            planner.on_demand(demand(name), view, 0)
    orders = planner.on_heartbeat(W, view, 1)
    assert {order.adapter_id for order in orders} == {"a", "b"}
    assert {order.tier for order in orders} == {Tier.WARM}


def test_tier_below_high_water_is_left_alone() -> None:
    fleet = FleetView()
    view = fleet.heard(beat(placed("a"), resident=TierUse(90, 100)), 0)
    assert view is not None
    assert Planner(Popularity()).on_heartbeat(W, view, 1) == []


@pytest.mark.parametrize("tier", [Tier.WARM, Tier.LOCAL])
def test_a_tier_that_copies_of_nearer_adapters_fill_loses_nothing(tier: Tier) -> None:
    # Nine adapters that are resident have a copy each in the tier below; one has its nearest copy there.
    fleet, planner = FleetView(), Planner(Popularity())
    full = {tier.value: TierUse(100, 100), "resident": TierUse(90, 1000)}
    view = fleet.heard(beat(*map(placed, "abcdefghi"), placed("j", tier), **full), 0)  # type: ignore[arg-type]
    assert view is not None
    assert planner.on_heartbeat(W, view, 1) == []


@pytest.mark.parametrize("tier", [Tier.WARM, Tier.LOCAL])
def test_no_more_is_evicted_than_brings_nearest_copies_to_low_water(tier: Tier) -> None:
    fleet, planner = FleetView(), Planner(Popularity())
    # 91 bytes of nearest copies and 9 of a nearer one's; the largest scores lowest, and without it 80 are left.
    near = [placed(name, tier) for name in "abcdefgh"] + [placed("i", tier, 11)]
    view = fleet.heard(beat(*near, placed("0", size_bytes=9), **{tier.value: TierUse(100, 100)}), 0)  # type: ignore[arg-type]
    assert view is not None
    assert [order.adapter_id for order in planner.on_heartbeat(W, view, 1)] == ["i"]


def test_incomplete_view_evicts_nothing() -> None:
    fleet = FleetView()
    view = fleet.heard(beat(placed("a"), is_snapshot=False, resident=TierUse(100, 100)), 0)
    assert view is not None
    assert Planner(Popularity()).on_heartbeat(W, view, 1) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=16), st.integers(1, 600))
def test_orders_never_name_a_pinned_adapter_and_suffice_if_they_can(
    sizes: list[tuple[int, bool]], budget_bytes: int
) -> None:
    held = [
        placed(format(index, "x"), size_bytes=size, num_pins=int(is_pinned))
        for index, (size, is_pinned) in enumerate(sizes)
    ]
    used_bytes = sum(size for size, _ in sizes)
    fleet = FleetView()
    view = fleet.heard(beat(*held, resident=TierUse(used_bytes, budget_bytes)), 0)
    assert view is not None
    orders = Planner(Popularity()).on_heartbeat(W, view, 1)
    chosen = {order.adapter_id for order in orders}
    by_name = {p.adapter_id: p for p in held}
    assert not any(by_name[name].num_pins for name in chosen)
    left_bytes = used_bytes - sum(by_name[name].size_bytes for name in chosen)
    if used_bytes <= HIGH_WATER * budget_bytes:
        assert orders == []
    elif left_bytes > LOW_WATER * budget_bytes:
        assert chosen == {p.adapter_id for p in held if not p.num_pins}


def test_snapshot_of_the_view_holds_the_whole_residency() -> None:
    fleet = FleetView()
    fleet.heard(beat(placed("a")), 0)
    fleet.heard(beat(placed("b"), sequence=2, is_snapshot=False), 0)
    (snapshot,) = fleet.snapshots()
    assert {p.adapter_id for p in snapshot.placed} == {"a", "b"}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot), type=Heartbeat) == snapshot


def test_obeyed_order_is_forgotten() -> None:
    planner, fleet = Planner(Popularity()), FleetView()
    view = fleet.heard(beat(placed("a"), placed("b"), resident=TierUse(20, 20)), 0)
    assert view is not None
    (order,) = planner.on_heartbeat(W, view, 1)
    planner.evicted(W, Evict(order.adapter_id, order.digest, order.tier))
    fleet.heard(beat(placed("a"), placed("b"), sequence=2, resident=TierUse(20, 20)), 2)
    (again,) = planner.on_heartbeat(W, view, 2)
    assert again.adapter_id != order.adapter_id


def test_a_demand_right_after_a_commanded_eviction_orders_the_load_though_the_view_is_older() -> None:
    fleet, planner = FleetView(), Planner(Popularity())
    fleet.heard(beat(placed("a")), 0)
    assert planner.on_demand(demand("a"), fleet.worker(W), 10) is None
    planner.commanded(W, Evict(*key("a"), Tier.COLD), 20)
    order = planner.on_demand(demand("a"), fleet.worker(W), 30)
    assert order == Prefetch(demand("a").adapter)
    assert planner.on_demand(demand("a"), fleet.worker(W), 40) is None, "it is on its way"
    assert planner.on_demand(demand("a"), fleet.worker(W), 5_000) is None, "heartbeats say that it is back"
