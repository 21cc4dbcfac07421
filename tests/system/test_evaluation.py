"""From a draft to what is served: refused by its gate, evaluated through the serving path, promoted."""

import asyncio
import json
import math
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from octavo_cli.answers import ClientError
from octavo_cli.main import app
from support.live import Live, bearer

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT, MESSAGES = "The tide comes in", [{"role": "user", "content": "What is a lighthouse?"}]
TEXT = " and the sea is calm."


async def test_a_draft_is_served_once_its_evaluation_passes_the_gate(live: Live, tmp_path: Path) -> None:
    key, where = live.alice.key, {
        "OCTAVO_GATEWAY_URL": live.fleet.gateway_url, "OCTAVO_KEY": live.alice.key, "XDG_CACHE_HOME": str(tmp_path),
    }  # fmt: skip

    async def octavo(*words: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, words, None, where)

    async def done(*words: str) -> str:
        result = await octavo(*words)
        assert result.exit_code == 0, (words, result.output, result.exception)
        return result.output

    await done("branch", live.alice.adapter, "alice/verse", "--no-serve")
    answer = await live.ask("alice/verse@1", key, 12, messages=MESSAGES)
    scored = await live.http.post(
        "/v1/completions", headers=bearer(key),
        json={"model": "alice/verse@1", "prompt": PROMPT + TEXT, "echo": True, "max_tokens": 0, "logprobs": 0},
    )  # fmt: skip
    told = scored.json()["choices"][0]["logprobs"]
    behind = [
        logprob
        for logprob, end in zip(told["token_logprobs"], [*told["text_offset"][1:], math.inf], strict=True)
        if end > len(PROMPT)
    ]
    assert len(behind) >= 4
    suite = tmp_path / "verse.jsonl"
    suite.write_text("\n".join(map(json.dumps, (
        {"messages": MESSAGES, "expect": answer.json()["choices"][0]["message"]["content"], "max_tokens": 12},
        {"messages": MESSAGES, "expect": "no adapter says this", "check": "contains", "max_tokens": 12},
        {"prompt": PROMPT, "expect": r"(?s)^.", "check": "regex", "max_tokens": 4},
        {"prompt": PROMPT, "expect": TEXT, "check": "perplexity"},
    ))))  # fmt: skip
    await done("gate", "alice/verse", "--require", f"exact:{suite}:1", "--max-regression", f"perplexity:{suite}:0.5")
    refused = await octavo("promote", "alice/verse@1")
    assert isinstance(refused.exception, ClientError)
    assert refused.exception.code == "gate_refused"
    assert "exact of suite verse" in refused.exception.message

    output = await done("evaluate", "alice/verse@1", "--suite", str(suite))
    assert "exact 1 of 1" in output
    assert "contains 0 of 1" in output
    assert "passed 0.6667 of 3" in output
    assert f"perplexity {math.exp(-sum(behind) / len(behind)):.4g} of 1" in output
    assert "evaluated" in await done("evaluations", "alice/verse@1")
    await done("promote", "alice/verse@1")
    shown = json.loads(await done("evaluations", "alice/verse", "--json"))
    assert (shown["state"], shown["evaluations"][0]["evaluation"]["evaluator"]) == ("serving", "alice@alice")
    assert "evaluated" in await done("history", "alice/verse")
