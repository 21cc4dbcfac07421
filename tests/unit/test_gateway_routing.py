"""Routing and the view of the fleet: values in, values out."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.fleet import FleetView
from octavo_gateway.routing import Candidate, pick
from octavo_shared.messages.fleet import HEARTBEAT_TIMEOUT_MS, Heartbeat, Placed, TierUse, WorkerState
from octavo_shared.messages.generation import Tier
from octavo_shared.references import AdapterId, Digest, Fingerprint, PackKey, WorkerId

BASE = Fingerprint("sha256:" + "a" * 64)
KEY: PackKey = (AdapterId("adapter"), Digest("sha256:" + "d" * 64))


def worker(name: str, load: int = 0, tier: Tier | None = None, state: WorkerState = WorkerState.READY) -> Candidate:
    return Candidate(WorkerId(name), state, BASE, load, {KEY: tier} if tier else {})


def test_adapter_goes_where_it_is_resident() -> None:
    for holder in ("w0", "w1", "w2", "w3"):
        fleet = [worker(f"w{i}", tier=Tier.RESIDENT if f"w{i}" == holder else None) for i in range(4)]
        assert pick(fleet, BASE, KEY, "r") == holder


def test_home_is_the_same_for_every_gateway_and_order() -> None:
    fleet = [worker(f"w{i}") for i in range(8)]
    assert pick(fleet, BASE, KEY, "r1") == pick(fleet[::-1], BASE, KEY, "r2")


def test_worker_that_leaves_moves_only_its_own_adapters() -> None:
    fleet = [worker(f"w{i}") for i in range(8)]
    for number in range(200):
        key = (AdapterId(f"a{number}"), KEY[1])
        home = pick(fleet, BASE, key, "r")
        without = pick([w for w in fleet if w.worker_id != "w3"], BASE, key, "r")
        assert home == without or home == "w3"


def test_load_guard_moves_a_hot_adapter_away() -> None:
    assert pick([worker("w0", load=9, tier=Tier.RESIDENT), worker("w1")], BASE, KEY, "r") == "w1"
    assert pick([worker("w0", load=8, tier=Tier.RESIDENT), worker("w1")], BASE, KEY, "r") == "w0"


def test_base_alone_goes_to_the_least_loaded() -> None:
    assert pick([worker("w0", 3), worker("w1", 1), worker("w2", 2)], BASE, None, "r") == "w1"


def test_draining_foreign_and_excluded_workers_are_never_picked() -> None:
    fleet = [worker("w0", state=WorkerState.DRAINING), worker("w1"), worker("w2")]
    assert pick(fleet, BASE, KEY, "r", {"w1", "w2"}) is None
    assert pick(fleet, Fingerprint("other"), KEY, "r") is None
    assert pick([], BASE, KEY, "r") is None


@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=20))
def test_picked_worker_is_never_above_the_guard(loads: list[tuple[int, bool]]) -> None:
    fleet = [worker(f"w{i}", load, Tier.RESIDENT if held else None) for i, (load, held) in enumerate(loads)]
    found = pick(fleet, BASE, KEY, "r")
    numbers = [load for load, _ in loads]
    load_of = {candidate.worker_id: candidate.load for candidate in fleet}
    assert found is not None
    assert load_of[found] <= max(min(numbers) + 8, 1.5 * sum(numbers) / len(numbers))


USE = TierUse(0, 0)
PLACED = Placed(*KEY, Tier.RESIDENT, 10)
FIRST = Heartbeat(
    WorkerId("w0"), 1, 1, WorkerState.READY, BASE, "base", 1, 2, 8, 1, 1, 1, USE, USE, USE, (PLACED,), True
)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def beat(sequence: int, epoch: int = 1, **fields: object) -> Heartbeat:
    fields = {"placed": (), "is_snapshot": False} | fields
    return msgspec.structs.replace(FIRST, sequence=sequence, epoch=epoch, **fields)


def tiers(view: FleetView) -> dict[PackKey, Tier]:
    return view.live()[0].tiers


def test_deltas_change_the_residency_and_cold_removes() -> None:
    view = FleetView(Clock())
    view.apply(FIRST)
    assert tiers(view) == {KEY: Tier.RESIDENT}
    view.apply(beat(2, placed=(msgspec.structs.replace(PLACED, tier=Tier.WARM),)))
    assert tiers(view) == {KEY: Tier.WARM}
    view.apply(beat(3, placed=(msgspec.structs.replace(PLACED, tier=Tier.COLD),)))
    assert tiers(view) == {}


def test_gap_forgets_the_residency_until_a_snapshot_but_keeps_load() -> None:
    view = FleetView(Clock())
    view.apply(FIRST)
    view.apply(beat(3, placed=(PLACED,), num_running=7))
    assert tiers(view) == {}
    assert view.live()[0].heartbeat.num_running == 7
    view.apply(beat(4, placed=(PLACED,)))
    assert tiers(view) == {}
    view.apply(beat(5, placed=(PLACED,), is_snapshot=True))
    assert tiers(view) == {KEY: Tier.RESIDENT}


def test_old_epochs_and_late_heartbeats_change_nothing() -> None:
    view = FleetView(Clock())
    view.apply(beat(5, epoch=2, num_running=4))
    view.apply(beat(9, epoch=1, num_running=9))
    view.apply(beat(5, epoch=2, num_running=9))
    assert view.live()[0].heartbeat.num_running == 4
    assert view.epoch_of(WorkerId("w0")) == 2


def test_new_epoch_starts_over() -> None:
    view = FleetView(Clock())
    view.apply(FIRST)
    view.apply(beat(1, epoch=2))
    assert tiers(view) == {}
    assert view.epoch_of(WorkerId("w0")) == 2


def test_silent_worker_is_lost_after_the_timeout() -> None:
    clock = Clock()
    view = FleetView(clock)
    view.apply(FIRST)
    clock.now = HEARTBEAT_TIMEOUT_MS
    assert view.epoch_of(WorkerId("w0")) == 1
    clock.now += 1
    assert view.epoch_of(WorkerId("w0")) is None
    assert view.bases() == {}
    assert view.live() == []


def test_requests_sent_since_the_last_heartbeat_count_as_load() -> None:
    view = FleetView(Clock())
    for name in ("w0", "w1"):
        view.apply(msgspec.structs.replace(FIRST, worker_id=WorkerId(name), num_running=0, num_waiting=0))
    first = view.pick(BASE, None, "r", ())
    assert first is not None
    with view.sent_to(first):
        assert view.pick(BASE, None, "r", ()) != first
    assert view.pick(BASE, None, "r", ()) == first
