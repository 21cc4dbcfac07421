"""Evaluations that their evaluators sign: in identity, and from the command that records to the one that verifies."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result
from typer.testing import CliRunner

from octavo_cli.main import app
from octavo_cli.statement_checks import problems_of
from octavo_shared import dsse, evaluation_statement
from octavo_shared.config import StoreSettings
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.errors import InvalidRequest, ProvenanceRefused
from octavo_shared.ledger_statements import evaluation_difference
from octavo_shared.messages.evaluation import Evaluation, Metric, Score
from octavo_shared.references import Digest
from support.access_gateways import front_of
from support.access_world import Who, access_world
from support.adapters import TINY_FINGERPRINT
from support.fakes import Exchange
from support.identity_rig import Client, own_identity

NAME = "home/diary"
SUITE = Digest("sha256:" + "5" * 64)
SCORES = (Score(Metric.EXACT, 0.75, 8), Score(Metric.PASSED, 1.0, 8))


@dataclass
class Evaluator:
    """Somebody with an API key, a signing key and an adapter of one revision."""

    client: Client
    signer: Signer
    digest: Digest

    def signed(self, **changed: Any) -> Envelope:
        made = Evaluation(1, self.digest, TINY_FINGERPRINT, "facts", SUITE, SCORES, "alice@home", 1_700_000_000_000)
        payload = evaluation_statement.build(NAME, msgspec.structs.replace(made, **changed))
        return dsse.sign(dsse.STATEMENT_TYPE, payload, self.signer)

    async def evaluate(self, statement: Envelope | None) -> Evaluation:
        made = await self.client.ask(
            "evaluate", reference=f"{NAME}@1", suite="facts", suite_digest=SUITE, scores=SCORES, base=TINY_FINGERPRINT,
            statement=statement,
        )  # fmt: skip
        assert isinstance(made, Evaluation)
        return made

    async def entries(self) -> Any:
        shown = await self.client.ask("evaluations", reference=f"{NAME}@1", num_max=50, with_statements=True)
        return shown.evaluations


@pytest.fixture
async def alice(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Evaluator]:
    async with own_identity(store_settings, tmp_path) as admin:
        client, signer = await admin.new_key("home", "alice"), Signer(bytes([1]) * 32)
        info = await client.push(NAME, 1)
        await client.ask("register_signer", public_key=signer.public_key.pem)
        yield Evaluator(client, signer, info.latest.digest)


async def test_an_evaluation_is_countersigned_and_verifies_from_what_is_shown(alice: Evaluator) -> None:
    made = await alice.evaluate(alice.signed())
    assert made.is_signed
    (entry,) = await alice.entries()
    assert entry.evaluation == made
    assert [one.principal for one in entry.signers] == ["alice@home", "registry"]

    def problems(evaluation: Evaluation) -> list[str]:
        return problems_of(
            entry.envelope, entry.signers, "alice@home", lambda data: evaluation_difference(data, NAME, evaluation)
        )

    assert problems(made) == []
    assert "predicate.scores" in problems(msgspec.structs.replace(made, scores=SCORES[:1]))[0]
    plain = await alice.client.ask("evaluations", reference=f"{NAME}@1")
    assert (plain.evaluations[0].envelope, plain.evaluations[0].evaluation) == (None, made)
    with pytest.raises(InvalidRequest, match="limit"):
        await alice.client.ask("evaluations", reference=f"{NAME}@1", num_max=51, with_statements=True)


async def test_a_finding_is_recorded_again_when_it_is_signed_and_not_again_without(alice: Evaluator) -> None:
    alone = await alice.evaluate(None)
    assert not alone.is_signed
    assert [[one.principal for one in entry.signers] for entry in await alice.entries()] == [["registry"]]
    assert await alice.evaluate(None) == alone
    own = await alice.evaluate(alice.signed())
    assert own.is_signed
    for statement in (None, alice.signed(at_ms=1_700_000_005_000)):
        assert await alice.evaluate(statement) == own
    assert len(await alice.entries()) == 2


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"scores": SCORES[:1]}, "predicate.scores"),
        ({"scores": (Score(Metric.EXACT, 0.8, 8), SCORES[1])}, "predicate.scores"),
        ({"suite": "other"}, "predicate.suite"),
        ({"suite_digest": Digest("sha256:" + "6" * 64)}, "predicate.suite"),
        ({"digest": Digest("sha256:" + "6" * 64)}, "subject.digest"),
        ({"base": "sha256:" + "6" * 64}, "predicate.base"),
        ({"evaluator": "bob@home"}, "predicate.evaluatedBy"),
    ],
)
async def test_a_statement_of_something_else_is_refused_by_field(
    alice: Evaluator, changed: dict[str, Any], field: str
) -> None:
    with pytest.raises(ProvenanceRefused) as caught:
        await alice.evaluate(alice.signed(**changed))
    assert caught.value.fields["field"] == field
    assert await alice.entries() == ()


async def test_only_a_key_of_the_evaluators_that_is_not_revoked_signs(alice: Evaluator) -> None:
    await alice.evaluate(alice.signed())
    stranger = Evaluator(alice.client, Signer(bytes([9]) * 32), alice.digest)
    with pytest.raises(InvalidRequest, match="keyid"):
        await alice.evaluate(stranger.signed())
    await alice.client.ask("revoke_signer", key_id=alice.signer.key_id)
    with pytest.raises(InvalidRequest, match="keyid"):
        await alice.evaluate(alice.signed())
    (entry,) = await alice.entries()
    assert entry.signers[0].is_valid
    assert entry.signers[0].revoked_at_ms is not None


async def test_an_evaluation_is_signed_and_verified_on_the_command_line(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    async def answering(exchange: Exchange) -> None:
        await exchange.answer([65, 66])

    suite = tmp_path / "facts.jsonl"
    suite.write_text(json.dumps({"prompt": "hi", "expect": r"(?s)^.", "check": "regex"}) + "\n")
    key_file = str(tmp_path / "me.pem")
    async with (
        access_world(store_settings, tmp_path) as world,
        front_of(world, store_settings, answering, 1) as front,
    ):
        owner = world.people[Who.OWNER]
        where = {
            "OCTAVO_GATEWAY_URL": str(front.http[0].base_url), "OCTAVO_KEY": owner.key.text,
            "XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"),
        }  # fmt: skip

        async def octavo(*words: str) -> Result:
            return await asyncio.to_thread(CliRunner().invoke, app, list(words), None, where)

        async def said(*words: str) -> str:
            result = await octavo(*words)
            assert result.exit_code == 0, (words, result.output, result.exception)
            return result.output

        evaluate = ("evaluate", f"{owner.adapter}@1", "--suite", str(suite))
        await said(*evaluate)
        await said("signer", "new", key_file)
        refused = await octavo(*evaluate, "--signing-key", key_file)
        assert "is not registered as yours" in str(refused.exception)
        await said("signer", "add", key_file)
        await said(*evaluate, "--signing-key", key_file)
        shown = await said("evaluations", f"{owner.adapter}@1", "--verify")
        assert "evaluator, registry: verified" in shown
        assert shown.count(": verified") == 2
        lines = (await said("evaluations", f"{owner.adapter}@1", "--verify", "--json")).splitlines()
        told = json.loads(next(line for line in lines if line.startswith("{")))
        assert told["evaluations"][0]["envelope"]["payloadType"] == dsse.STATEMENT_TYPE
        where["OCTAVO_KEY"] = world.people[Who.ADMIN].key.text
        audited = await said("verify", "--all")
        assert ", 0 bad" in audited
