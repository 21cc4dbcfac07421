"""Shedding: who is let in, and when the others may come back."""

import pytest

from octavo_gateway.admission import Admission, RateLimit
from octavo_gateway.credentials import credential_of, new_key
from octavo_shared.errors import NoWorker, Overloaded, Unauthenticated
from octavo_shared.messages.requests import Credential

ALICE, BOB = Credential("a", b"1"), Credential("b", b"2")


def test_key_is_shed_after_its_burst_and_told_truthfully_when_to_return() -> None:
    rate = RateLimit(per_s=2.0, burst=3)
    assert [rate.take(ALICE, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    wait_ms = rate.take(ALICE, 0.0)
    assert wait_ms == pytest.approx(500.0)
    assert rate.take(ALICE, wait_ms - 1.0) > 0.0
    assert rate.take(ALICE, wait_ms + 1.0) == 0.0


def test_one_key_does_not_drain_anothers_bucket_even_with_its_id() -> None:
    rate = RateLimit(per_s=1.0, burst=1)
    assert rate.take(ALICE, 0.0) == 0.0
    assert rate.take(BOB, 0.0) == 0.0
    assert rate.take(Credential("b", b"guess"), 0.0) == 0.0
    assert rate.take(BOB, 999.0) > 0.0


def test_buckets_are_bounded() -> None:
    rate = RateLimit(per_s=1.0, burst=1, num_buckets_max=4)
    for number in range(100):
        rate.take(Credential(str(number), b""), 0.0)
    assert rate.num_buckets == 4


def test_in_flight_bound_holds_and_tickets_are_given_back_once() -> None:
    admission = Admission(RateLimit(1000.0, 1000), num_in_flight_max=2)
    first, _ = admission.enter(0.0), admission.enter(0.0)
    with pytest.raises(Overloaded):
        admission.enter(0.0)
    with pytest.raises(Overloaded) as shed:
        admission.knock(ALICE)
    assert shed.value.fields["retry_after_s"] >= 1
    first.leave()
    first.leave()
    assert admission.num_in_flight == 1
    admission.knock(ALICE)
    admission.enter(0.0)


def test_closed_admission_refuses_with_503() -> None:
    admission = Admission(RateLimit(1.0, 1), num_in_flight_max=2)
    admission.close()
    with pytest.raises(NoWorker):
        admission.knock(ALICE)
    with pytest.raises(NoWorker):
        admission.enter(0.0)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer sk-123", "Basic oct_", "Bearer oct_12_34"])
def test_anything_but_a_key_of_our_form_is_unauthenticated(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        credential_of(header)


def test_new_key_is_read_back_as_its_credential() -> None:
    text, credential = new_key()
    assert credential_of(f"Bearer {text}") == credential
    assert text.split("_")[2] not in repr(credential)
