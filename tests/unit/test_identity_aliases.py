import msgspec
import pytest

from octavo_identity.aliases import ALIASES_MAX, TRAIL_MAX, alias_for, moved, moved_back, with_revision, without
from octavo_identity.records import REVISIONS_IN_HEAD_MAX, AdapterHead, StoredRevision
from octavo_identity.states import RETIRED_RANGES_MAX, is_retired, state_of, with_retired
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import Revision, RevisionState
from octavo_shared.references import AdapterId, Digest, TenantId
from support.adapters import TINY_FINGERPRINT

PRINCIPALS = [f"user{number}@home" for number in range(2_000)]


def stored(number: int) -> StoredRevision:
    digest = Digest(f"sha256:{number:064x}")
    return StoredRevision(
        Revision(number, digest, TINY_FINGERPRINT, 1, 4, 2, "F32", "alice@home", 1), f"packs/{number}"
    )


def head(num_revisions: int, adapter_id: str = "a") -> AdapterHead:
    made = AdapterHead(AdapterId(adapter_id), TenantId("t"), "home/diary", "alice@home", 0, (), {})
    for number in range(1, num_revisions + 1):
        made = with_revision(made, stored(number))
    return made


def canary(percent: int, adapter_id: str = "a") -> set[str]:
    """Return who gets the canary at this share."""
    made = msgspec.structs.replace(moved(head(2, adapter_id), "canary", stored(2)), canary_percent=percent)
    return {who for who in PRINCIPALS if alias_for(made, who) == "canary"}


def test_a_canary_gets_its_share_and_sticks_while_the_share_grows() -> None:
    assert canary(0) == set()
    assert canary(100) == set(PRINCIPALS)
    tenth, half = canary(10), canary(50)
    assert abs(len(tenth) / len(PRINCIPALS) - 0.1) < 0.03
    assert abs(len(half) / len(PRINCIPALS) - 0.5) < 0.05
    assert tenth < half
    assert canary(10) == tenth
    assert len(canary(50, "b") ^ half) > len(PRINCIPALS) / 3, "each adapter draws other principals"


def test_without_a_canary_everybody_is_served_alike() -> None:
    made = without(msgspec.structs.replace(moved(head(2), "canary", stored(2)), canary_percent=100), "canary")
    assert {alias_for(made, who) for who in PRINCIPALS} == {"serving"}
    assert (made.canary_percent, made.aliases) == (0, {"serving": 2})


def test_a_head_stays_bounded_whatever_its_aliases_do() -> None:
    made = head(200)
    for number in range(1, 150):
        made = moved(made, "serving", stored(number))
    kept = [one.revision.number for one in made.revisions]
    assert kept == [149, *range(200 - REVISIONS_IN_HEAD_MAX + 1, 201)]
    assert made.trails == {"serving": tuple(range(149 - TRAIL_MAX, 149))}
    for number in range(1, ALIASES_MAX):
        made = moved(made, f"alias{number}", stored(number))
    assert len(made.revisions) == REVISIONS_IN_HEAD_MAX + ALIASES_MAX
    with pytest.raises(InvalidRequest, match="alias"):
        moved(made, "one-more", stored(200))
    with pytest.raises(InvalidRequest, match="alias"):
        with_revision(made, stored(201), "one-more")
    assert with_revision(made, stored(201), None).aliases == made.aliases


def test_going_back_never_goes_forward_again() -> None:
    made = moved(moved(head(3), "serving", stored(1)), "serving", stored(2))
    assert made.trails["serving"] == (1, 2, 3, 1)
    made = moved_back(made, "serving", stored(1))
    assert (made.aliases["serving"], made.trails["serving"]) == (1, (1, 2, 3))
    made = moved_back(made, "serving", stored(2))
    assert (made.aliases["serving"], made.trails["serving"]) == (2, (1,))
    assert moved_back(made, "serving", stored(3)).trails == {}
    assert moved(made, "serving", stored(2)).trails == made.trails


def test_states_are_told_of_revisions_that_the_head_has_forgotten() -> None:
    made = with_retired(with_retired(with_retired(head(80), 3), 5), 4)
    assert made.retired == ((3, 5),)
    assert [state_of(made, number) for number in (2, 3, 4, 5, 6, 80)] == [
        RevisionState.DRAFT, *[RevisionState.RETIRED] * 3, RevisionState.DRAFT, RevisionState.SERVING,
    ]  # fmt: skip
    assert all(is_retired(with_revision(made, stored(81)), number) for number in (3, 4, 5))


def test_what_is_retired_takes_a_bounded_place() -> None:
    made = head(1)
    for number in range(1, RETIRED_RANGES_MAX + 1):
        made = with_retired(made, 2 * number)
    with pytest.raises(InvalidRequest, match="revision"):
        with_retired(made, 2 * RETIRED_RANGES_MAX + 2)
    assert len(with_retired(made, 3).retired) == RETIRED_RANGES_MAX - 1
