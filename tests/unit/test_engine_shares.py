"""Fair shares: who was served least is next, and idleness is not saved up."""

import random

import pytest

from octavo_shared.references import TenantId
from octavo_worker.engine.shares import ANSWER_WEIGHT, TenantShares

A, B, C = TenantId("a"), TenantId("b"), TenantId("c")


def test_what_was_computed_is_counted() -> None:
    shares = TenantShares()
    shares.arrived(A)
    shares.charge(A, 10, 3)
    assert shares.served(A) == 10 + 3 * ANSWER_WEIGHT


def test_a_newcomer_begins_where_the_least_served_stands() -> None:
    shares = TenantShares()
    for tenant in (A, B):
        shares.arrived(tenant)
    shares.charge(A, 500, 0)
    shares.charge(B, 300, 0)
    shares.arrived(C)
    assert shares.served(C) == 300


def test_coming_and_going_pays_no_debt() -> None:
    shares = TenantShares()
    for tenant in (A, B):
        shares.arrived(tenant)
    shares.charge(A, 500, 0)
    shares.charge(B, 100, 0)
    shares.left(A)
    shares.arrived(A)
    assert shares.served(A) == 500


def test_idle_tenants_are_forgotten_beyond_the_bound() -> None:
    shares = TenantShares(num_tenants_max=2)
    for number in range(50):
        shares.arrived(TenantId(str(number)))
        shares.left(TenantId(str(number)))
    shares.arrived(A)
    with pytest.raises(KeyError):
        shares.served(TenantId("0"))


def test_tenants_with_many_sequences_get_no_more_than_those_with_few() -> None:
    shares, draw = TenantShares(), random.Random(1)
    served = {A: 0, B: 0}
    for tenant, num in ((A, 30), (B, 2)):
        for _ in range(num):
            shares.arrived(tenant)
    for _ in range(2000):
        tenant = min(served, key=shares.served)
        num_tokens = draw.randint(1, 40)
        shares.charge(tenant, num_tokens, 0)
        served[tenant] += num_tokens
    assert abs(served[A] - served[B]) <= 40
