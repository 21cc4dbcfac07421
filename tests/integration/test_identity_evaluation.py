"""Evaluations and gates, on a real registry: what is recorded, who may, and what a gate keeps from being served."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from octavo_identity.records import EVALUATIONS_IN_HEAD_MAX
from octavo_shared.config import StoreSettings
from octavo_shared.errors import (
    AdapterNotFound,
    BaseMismatch,
    GateRefused,
    InvalidRequest,
    NotPermitted,
    OctavoError,
    RevisionRetired,
    Unauthenticated,
)
from octavo_shared.messages.adapters import RevisionState
from octavo_shared.messages.evaluation import Evaluation, Gate, Metric, Rule, Score
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import Role
from octavo_shared.messages.requests import Credential
from octavo_shared.references import Digest
from support.adapters import TINY_FINGERPRINT
from support.identity_rig import Client, own_identity

OTHER_BASE = "sha256:" + "0" * 64


@pytest.fixture
async def admin(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Client]:
    async with own_identity(store_settings, tmp_path) as client:
        yield client


def digest_of(suite: str) -> Digest:
    return Digest("sha256:" + hashlib.sha256(suite.encode()).hexdigest())


async def evaluate(who: Client, reference: str, value: float, suite: str = "facts", **fields: Any) -> Evaluation:
    asked = {"suite": suite, "suite_digest": digest_of(suite), "base": TINY_FINGERPRINT} | fields
    made = await who.ask("evaluate", reference=reference, scores=(Score(Metric.EXACT, value, 10),), **asked)
    assert isinstance(made, Evaluation)
    return made


def wanting(least: float | None = 0.8, regression_max: float | None = None, suite: str = "facts") -> Gate:
    return Gate((Rule(Metric.EXACT, suite, digest_of(suite), least, regression_max),))


async def serving(who: Client, name: str) -> int:
    adapter = (await who.resolve(name)).adapter
    assert adapter is not None
    return adapter.revision


async def state(who: Client, name: str) -> RevisionState:
    found = await who.ask("list", prefix=name)
    assert isinstance(found.adapters[0].state, RevisionState)
    return found.adapters[0].state


async def test_an_evaluated_draft_says_so_and_its_history_shows_the_scores(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    assert await state(alice, "home/diary") is RevisionState.DRAFT
    made = await evaluate(alice, "home/diary@2", 0.75)
    assert (made.number, made.base, made.evaluator) == (2, TINY_FINGERPRINT, "alice@home")
    assert made.scores == (Score(Metric.EXACT, 0.75, 10),)
    assert await state(alice, "home/diary") is RevisionState.EVALUATED
    for wanted, names in ((RevisionState.EVALUATED, ["home/diary"]), (RevisionState.DRAFT, [])):
        assert [one.name for one in (await alice.ask("list", state=wanted)).adapters] == names
    listed = await alice.ask("evaluations", reference="home/diary@2")
    assert (listed.state, listed.revision.number, listed.is_whole) == (RevisionState.EVALUATED, 2, True)
    assert [one.evaluation for one in listed.evaluations] == [made]
    assert (await alice.ask("evaluations", reference="home/diary@1")).evaluations == ()
    entry = (await alice.ask("history", adapter="home/diary")).entries[0]
    assert (entry.kind, entry.evaluation, entry.sequence) == ("evaluated", made, listed.evaluations[0].sequence)
    await alice.ask("promote", reference="home/diary@2")
    assert await state(alice, "home/diary") is RevisionState.SERVING
    await alice.ask("rollback", adapter="home/diary")
    assert await state(alice, "home/diary") is RevisionState.EVALUATED
    await alice.ask("retire", adapter="home/diary", number=2)
    assert await state(alice, "home/diary") is RevisionState.RETIRED
    with pytest.raises(RevisionRetired):
        await evaluate(alice, "home/diary@2", 1.0)


async def test_a_repeated_evaluation_is_one_event(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    first = await evaluate(alice, "home/diary@1", 0.5, idempotency_key="run")
    await evaluate(alice, "home/diary@1", 0.6)
    assert await evaluate(alice, "home/diary@1", 0.9, idempotency_key="run") == first
    again = await evaluate(alice, "home/diary@1", 0.6)
    assert again.scores[0].value == 0.6
    listed = await alice.ask("evaluations", reference="home/diary@1")
    assert [one.evaluation.scores[0].value for one in listed.evaluations] == [0.6, 0.5]


async def test_what_is_no_evaluation_of_the_revision_is_refused(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    with pytest.raises(BaseMismatch):
        await evaluate(alice, "home/diary@1", 1.0, base=OTHER_BASE)
    for reference in ("home/diary@2", "home/nothing@1"):
        with pytest.raises(AdapterNotFound):
            await evaluate(alice, reference, 1.0)
    wrong: list[dict[str, Any]] = [
        {"reference": "home/diary"}, {"suite": "No Name"}, {"suite_digest": "sha256:12"}, {"scores": ()},
        {"scores": (Score(Metric.EXACT, 1.1, 1),)}, {"scores": (Score(Metric.EXACT, float("nan"), 1),)},
        {"scores": (Score(Metric.PERPLEXITY, 0.5, 1),)}, {"scores": (Score(Metric.EXACT, 1.0, 0),)},
        {"scores": (Score(Metric.EXACT, 1.0, 1), Score(Metric.EXACT, 0.5, 1))},         {"idempotency_key": ""},
    ]  # fmt: skip
    good = {
        "reference": "home/diary@1", "suite": "facts", "suite_digest": digest_of("facts"),
        "scores": (Score(Metric.EXACT, 1.0, 1),), "base": TINY_FINGERPRINT,
    }  # fmt: skip
    for fields in wrong:
        with pytest.raises(InvalidRequest):
            await alice.ask("evaluate", **good | fields)
    assert (await alice.ask("evaluations", reference="home/diary@1")).evaluations == ()


async def test_a_promotion_that_the_gate_refuses_says_why(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.ask("set_gate", target="home/diary", gate=wanting(0.8))
    for alias in ("serving", "stable"):
        with pytest.raises(GateRefused) as missing:
            await alice.ask("promote", reference="home/diary@2", alias=alias)
        assert missing.value.fields == {
            "alias": alias, "number": 2, "gate": "home/diary", "metric": "exact", "suite": "facts",
            "suite_digest": digest_of("facts"), "threshold": 0.8, "detail": missing.value.fields["detail"],
        }  # fmt: skip
        assert "revision 2 has no such score" in missing.value.message
    await evaluate(alice, "home/diary@2", 0.95, suite="facts", suite_digest=digest_of("an easier file"))
    with pytest.raises(GateRefused, match="another file of that name"):
        await alice.ask("promote", reference="home/diary@2")
    await evaluate(alice, "home/diary@1", 1.0)
    with pytest.raises(GateRefused, match="no such score"):
        await alice.ask("promote", reference="home/diary@2")
    await evaluate(alice, "home/diary@2", 0.7)
    with pytest.raises(GateRefused, match=r"has 0.7, wanted is at least 0.8") as low:
        await alice.ask("promote", reference="home/diary@2")
    assert low.value.fields["score"] == 0.7
    assert await serving(alice, "home/diary") == 1
    await evaluate(alice, "home/diary@2", 0.8)
    await alice.ask("promote", reference="home/diary@2")
    assert await serving(alice, "home/diary") == 2
    # The newest one counts, also when it is worse; what is served already may stay so.
    await evaluate(alice, "home/diary@2", 0.1)
    await alice.ask("promote", reference="home/diary@2")
    with pytest.raises(GateRefused):
        await alice.ask("promote", reference="home/diary@2", alias="stable")


async def test_a_push_cannot_pass_a_gate_and_a_draft_can(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.ask("set_gate", target="home/diary", gate=wanting())
    upload_id = await alice.stage("home/diary", 2)
    fields = {"adapter": "home/diary", "upload_id": upload_id, "served_base": TINY_FINGERPRINT}
    with pytest.raises(GateRefused):
        await alice.ask("commit", **fields)
    assert (await alice.ask("list")).adapters[0].num_revisions == 1
    made = await alice.ask("commit", **fields, alias=None)
    assert (made.num_revisions, made.aliases) == (2, {"serving": 1})


async def test_a_regression_is_measured_against_what_is_served(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await admin.ask("set_gate", target="home", gate=wanting(None, 0.02))
    # With nothing served there is nothing to be worse than.
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await evaluate(alice, "home/diary@2", 0.79)
    with pytest.raises(GateRefused, match="revision 1, has no such score to compare with"):
        await alice.ask("promote", reference="home/diary@2")
    await evaluate(alice, "home/diary@1", 0.82)
    with pytest.raises(GateRefused, match=r"has 0.79 and revision 1, which is served, has 0.82"):
        await alice.ask("promote", reference="home/diary@2")
    await evaluate(alice, "home/diary@2", 0.8)
    await alice.ask("promote", reference="home/diary@2")
    assert await serving(alice, "home/diary") == 2


async def test_what_was_served_before_comes_back_at_once(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2)
    await alice.push("home/diary", 3, alias=None)
    await alice.ask("set_gate", target="home/diary", gate=wanting())
    await alice.ask("rollback", adapter="home/diary")
    assert await serving(alice, "home/diary") == 1
    # It left the trail when it was rolled back, and was served all the same.
    await alice.ask("rollback", adapter="home/diary", number=2)
    assert await serving(alice, "home/diary") == 2
    with pytest.raises(GateRefused):
        await alice.ask("rollback", adapter="home/diary", number=3)
    await evaluate(alice, "home/diary@3", 0.9)
    await alice.ask("rollback", adapter="home/diary", number=3)
    assert await serving(alice, "home/diary") == 3


async def test_a_canary_is_for_trying_until_most_get_it(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.ask("set_gate", target="home/diary", gate=wanting())
    await alice.ask("promote", reference="home/diary@2", alias="mine")
    await alice.ask("promote", reference="home/diary@2", alias="canary", share_percent=50)
    for alias, share in (("canary", 51), ("serving", None)):
        with pytest.raises(GateRefused):
            await alice.ask("promote", reference="home/diary@2", alias=alias, share_percent=share)
    await evaluate(alice, "home/diary@1", 0.9)
    await alice.ask("promote", reference="home/diary@1", alias="canary", share_percent=100)
    with pytest.raises(GateRefused):
        await alice.ask("rollback", adapter="home/diary", alias="canary")
    await alice.ask("promote", reference="home/diary@1", alias="canary", share_percent=50)
    await alice.ask("rollback", adapter="home/diary", alias="canary")
    # Having been a canary is not having been served.
    with pytest.raises(GateRefused):
        await alice.ask("rollback", adapter="home/diary", number=2)


async def test_both_gates_hold_and_a_branch_has_passed_neither(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await evaluate(alice, "home/diary@1", 1.0)
    await alice.push("home/diary", 2, alias=None)
    await admin.ask("set_gate", target="home", gate=wanting(0.5, suite="manners"))
    await alice.ask("set_gate", target="home/diary", gate=wanting(0.5))
    gates = await alice.ask("get_gate", target="home/diary")
    assert (gates.adapter, gates.tenant) == (wanting(0.5), wanting(0.5, suite="manners"))
    await evaluate(alice, "home/diary@2", 0.9)
    with pytest.raises(GateRefused) as refused:
        await alice.ask("promote", reference="home/diary@2")
    assert (refused.value.fields["gate"], refused.value.fields["suite"]) == ("home", "manners")
    with pytest.raises(GateRefused):
        await alice.ask("branch", source="home/diary@1", adapter="home/poems")
    draft = await alice.ask("branch", source="home/diary@1", adapter="home/poems", alias=None)
    assert draft.aliases == {}
    await evaluate(alice, "home/diary@2", 0.6, suite="manners")
    await alice.ask("promote", reference="home/diary@2")
    await admin.ask("set_gate", target="home", gate=None)
    await alice.ask("set_gate", target="home/diary", gate=None)
    gates = await alice.ask("get_gate", target="home/diary")
    assert (gates.adapter, gates.tenant) == (None, None)
    await alice.ask("promote", reference="home/poems@1")
    kinds = [entry.kind for entry in (await alice.ask("history", adapter="home/diary")).entries]
    assert kinds[:4] == ["gate_cleared", "promoted", "evaluated", "evaluated"]


async def test_a_gate_counts_only_its_evaluators_who_may_record_for_it(admin: Client) -> None:
    alice, checker = await admin.new_key("home", "alice"), await admin.new_key("away", "checker", Role.USER)
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.ask("grant", adapter="home/diary", principal="checker@away")
    with pytest.raises(NotPermitted):
        await evaluate(checker, "home/diary@2", 1.0)
    gate = msgspec.structs.replace(wanting(), evaluators=("checker@away",))
    await admin.ask("set_gate", target="home", gate=gate)
    await evaluate(alice, "home/diary@2", 1.0)
    with pytest.raises(GateRefused, match="by checker@away"):
        await alice.ask("promote", reference="home/diary@2")
    await evaluate(checker, "home/diary@2", 0.9)
    # The owner's own finding is newer, and is still not the one that counts.
    await evaluate(alice, "home/diary@2", 0.1)
    await alice.ask("promote", reference="home/diary@2")
    await alice.ask("revoke", adapter="home/diary", principal="checker@away")
    with pytest.raises(AdapterNotFound):
        await evaluate(checker, "home/diary@2", 1.0)


async def test_a_head_holds_so_many_evaluations_and_the_ledger_the_rest(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary", 1)
    await alice.push("home/diary", 2, alias=None)
    await alice.push("home/diary", 3, alias=None)
    await alice.ask("set_gate", target="home/diary", gate=wanting(0.5, 0.0, suite="s0"))
    for number in (1, 2):
        await evaluate(alice, f"home/diary@{number}", 0.9, suite="s0")
    for index in range(1, EVALUATIONS_IN_HEAD_MAX):
        await evaluate(alice, "home/diary@3", 0.9, suite=f"s{index}")
    # That of the revision that is served outlives the draft's, which is to be made again.
    with pytest.raises(GateRefused, match="revision 2 has no such score"):
        await alice.ask("promote", reference="home/diary@2")
    listed = await alice.ask("evaluations", reference="home/diary@2")
    assert ([one.evaluation.suite for one in listed.evaluations], listed.is_whole) == (["s0"], True)
    await evaluate(alice, "home/diary@2", 0.9, suite="s0")
    await alice.ask("promote", reference="home/diary@2")
    page = await alice.ask("evaluations", reference="home/diary@3", num_max=5)
    assert ([one.evaluation.suite for one in page.evaluations], page.is_whole) == (
        [f"s{EVALUATIONS_IN_HEAD_MAX - 1 - index}" for index in range(5)], False,
    )  # fmt: skip


async def refusal(who: Client, verb: str, **fields: Any) -> str:
    try:
        await who.ask(verb, **fields)
    except OctavoError as error:
        return error.code
    return ""


async def test_each_verb_is_for_those_whom_it_is_for(admin: Client) -> None:
    alice, carol = await admin.new_key("home", "alice"), await admin.new_key("home", "carol")
    bob, mallory = await admin.new_key("away", "bob", Role.USER), await admin.new_key("away", "mallory")
    editor, auditor = await admin.new_key("away", "erin"), await admin.new_key("away", "otto")
    revoked = await admin.new_key("home", "alice")
    await admin.ask("revoke_key", key_id=revoked.credential.key_id)
    none = Client(admin.bus, admin.store, Credential("", b""))
    await alice.push("home/diary")
    for user, role in (("bob", GrantRole.USER), ("erin", GrantRole.EDITOR), ("otto", GrantRole.AUDITOR)):
        await alice.ask("grant", adapter="home/diary", principal=f"{user}@away", role=role)
    finding = {
        "suite": "facts", "suite_digest": digest_of("facts"), "base": TINY_FINGERPRINT,
        "scores": (Score(Metric.EXACT, 1.0, 1),),
    }  # fmt: skip
    everyone = (alice, editor, bob, auditor, carol, mallory, admin, revoked, none)
    hidden, denied, no_key, bad = "adapter_not_found", "not_permitted", Unauthenticated.code, InvalidRequest.code
    outside = (hidden, hidden, hidden, no_key, no_key)
    denied_to_all = (*(denied,) * 6, "", no_key, no_key)
    expected: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
        ("evaluate", {"reference": "home/diary@1"} | finding, ("", "", denied, denied, *outside)),
        ("evaluate", {"reference": "home/nil@1"} | finding, (*(hidden,) * 4, *outside)),
        ("evaluations", {"reference": "home/diary@1"}, ("", "", "", "", *outside)),
        ("evaluations", {"reference": "home/nil@1"}, (*(hidden,) * 4, *outside)),
        ("get_gate", {"target": "home/diary"}, ("", "", "", "", *outside)),
        ("get_gate", {"target": "home"}, ("", denied, denied, denied, "", denied, "", no_key, no_key)),
        ("get_gate", {"target": "nowhere"}, denied_to_all),
        # An editor pushes and promotes, and does not lift what holds it to something.
        ("set_gate", {"target": "home/diary", "gate": wanting()}, ("", denied, denied, denied, *outside)),
        ("set_gate", {"target": "home", "gate": wanting()}, denied_to_all),
        ("set_gate", {"target": "nowhere", "gate": wanting()}, (*(denied,) * 6, bad, no_key, no_key)),
    ]
    for verb, fields, codes in expected:
        told = tuple([await refusal(who, verb, **fields) for who in everyone])
        assert told == codes, (verb, fields)


async def test_a_gate_that_could_never_be_held_is_refused(admin: Client) -> None:
    alice = await admin.new_key("home", "alice")
    await alice.push("home/diary")
    rule = wanting().rules[0]
    wrong: list[Gate] = [
        Gate(()), Gate((rule, rule)), Gate((rule,) * 20),
        *(Gate((msgspec.structs.replace(rule, **change),)) for change in (
            {"suite": "No Name"}, {"suite_digest": "facts"}, {"threshold": None}, {"threshold": 1.5},
            {"threshold": float("nan")}, {"regression_max": -0.1}, {"metric": Metric.PERPLEXITY, "threshold": 0.5},
        )),
        *(Gate((rule,), evaluators) for evaluators in (("*@home",), ("alice",), ("a@b",) * 20)),
    ]  # fmt: skip
    for gate in wrong:
        assert await refusal(alice, "set_gate", target="home/diary", gate=gate) == InvalidRequest.code, gate
    assert await refusal(alice, "set_gate", target="home/diary@1", gate=wanting()) == InvalidRequest.code


async def test_a_tenant_with_a_gate_is_still_the_one_that_was_created(admin: Client) -> None:
    await admin.ask("create_tenant", tenant="new", idempotency_key="first")
    await admin.ask("set_gate", target="new", gate=wanting(), idempotency_key="gate")
    await admin.ask("set_gate", target="new", gate=None)
    await admin.ask("create_tenant", tenant="new", idempotency_key="first")
    assert await refusal(admin, "create_tenant", tenant="new") == "name_taken"
    # A write that was done is not done again.
    await admin.ask("set_gate", target="new", gate=wanting(), idempotency_key="gate")
    assert (await admin.ask("get_gate", target="new")).tenant is None
