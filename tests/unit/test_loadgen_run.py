"""The command itself, as a process, against a small gateway written by hand on loopback."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from litestar import Litestar, Request, Response, post
from litestar.response.streaming import Stream

from octavo_cli.processes import free_port
from octavo_loadgen.report import Report
from octavo_shared.service import http_server

KEY = "oct_key"
TEXT = b'data: {"choices":[{"delta":{"content":"%d"},"finish_reason":null}],"usage":null}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"length"}],"usage":null}\n\n'
USAGE = b'data: {"choices":[],"usage":{"completion_tokens":%d}}\n\n'
FAILURE = b'data: {"error":{"code":"worker_lost","message":"lost"}}\n\n'


class Asked(msgspec.Struct):
    model: str
    max_tokens: int
    seed: int
    stream: bool


class Gateway:
    """What the last part of the model's name says happens; ``seen`` are the bodies that came."""

    def __init__(self) -> None:
        self.seen: list[Asked] = []
        self.held = asyncio.Event()

    def app(self) -> Litestar:
        @post("/v1/chat/completions", status_code=200)
        async def chat(request: Request[Any, Any, Any]) -> Response[bytes] | Stream:
            asked = msgspec.json.decode(await request.body(), type=Asked)
            self.seen.append(asked)
            if request.headers["authorization"] != f"Bearer {KEY}" or asked.model == "t/refused":
                return Response(b'{"error":{"code":"adapter_not_found"}}', status_code=404)
            tier = "cold" if asked.model == "t/cold" else "resident"
            return Stream(self._events(asked), media_type="text/event-stream", headers={"octavo-tier": tier})

        return Litestar([chat], openapi_config=None)

    async def _events(self, asked: Asked) -> AsyncIterator[bytes]:
        for index in range(asked.max_tokens):
            yield TEXT % index
        if asked.model == "t/held":
            self.held.set()
            await asyncio.Event().wait()
        if asked.model == "t/lost":
            yield FAILURE
        elif asked.model != "t/cut":
            yield FINISH
            yield USAGE % asked.max_tokens
        yield b"data: [DONE]\n\n"


def scenario(tmp_path: Path, *names: str, extra: str = "", deadline_s: float = 20.0) -> Path:
    path = tmp_path / "scenario.toml"
    adapters = "".join(f'[[adapters]]\nmodel = "t/{name}"\n' for name in names)
    path.write_text(
        f'name = "[t]"\nseed = 3\n{adapters}[[prompts]]\ntext = "hello"\nmax_tokens = 4\n'
        f"[load]\nrate_per_s = 40.0\nduration_s = 0.5\ndeadline_s = {deadline_s}\n"
        f'[popularity]\nkind = "distinct"\n{extra}'
    )
    return path


async def start(path: Path, url: str, key: str = KEY) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "octavo_loadgen.main", "run", str(path), "--gateway-url", url),
        env=os.environ | {"OCTAVO_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str, str]:
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def report_in(out: str) -> Report:
    *before, last = out.splitlines()
    assert out.endswith("\n")
    assert not [line for line in before if line.startswith("{")]
    return msgspec.json.decode(last, type=Report)


@pytest.fixture
async def gateway() -> AsyncIterator[tuple[Gateway, str]]:
    # Any test's own port: nothing is shared, and a held stream is dropped when the server stops.
    port, gateway = free_port(), Gateway()
    async with http_server(gateway.app(), "127.0.0.1", port, drain_s=1.0):
        yield gateway, f"http://127.0.0.1:{port}"


async def test_run_measures_every_answer_and_ends_with_one_json_line(
    gateway: tuple[Gateway, str], tmp_path: Path
) -> None:
    server, url = gateway
    code, out, err = await ended(await start(scenario(tmp_path, "warm", "cold"), url))
    assert (code, err) == (0, "")
    report = report_in(out)
    summary = report.summary
    assert report.is_ok
    assert (report.scenario, report.seed, report.num_adapters) == ("[t]", 3, 2)
    assert summary.num_requests == summary.num_complete == len(server.seen) > 5
    assert summary.num_tokens == 4 * summary.num_requests
    assert summary.errors == {}
    assert summary.tiers.keys() == {"cold", "resident"}
    assert summary.cold_start_ttft_ms.num == summary.tiers["cold"]
    assert summary.ttft_ms.num == summary.num_requests
    assert summary.goodput_share == 1.0
    assert "[t]: milliseconds" in out
    assert "cold-start TTFT" in out
    assert all(asked.stream for asked in server.seen)


async def test_errors_are_counted_by_code_and_fail_the_run(gateway: tuple[Gateway, str], tmp_path: Path) -> None:
    _, url = gateway
    path = scenario(tmp_path, "warm", "refused", "lost", "cut", "held", deadline_s=3.0)
    code, out, _ = await ended(await start(path, url))
    report = report_in(out)
    assert code == 1
    assert not report.is_ok
    assert report.summary.errors.keys() == {
        "adapter_not_found",
        "worker_lost",
        "client_truncated",
        "client_deadline",
    }
    assert sum(report.summary.errors.values()) + report.summary.num_complete == report.summary.num_requests


async def test_scenario_that_allows_errors_keeps_its_word(gateway: tuple[Gateway, str], tmp_path: Path) -> None:
    _, url = gateway
    path = scenario(tmp_path, "refused", extra="[objectives]\nerrors_share_max = 1.0\n")
    code, out, _ = await ended(await start(path, url))
    assert (code, report_in(out).summary.num_complete) == (0, 0)


async def test_gateway_that_is_not_there_is_a_counted_error(tmp_path: Path) -> None:
    code, out, _ = await ended(await start(scenario(tmp_path, "warm"), f"http://127.0.0.1:{free_port()}"))
    assert code == 1
    assert report_in(out).summary.errors.keys() == {"client_connection"}


async def test_interrupt_reports_what_was_measured(gateway: tuple[Gateway, str], tmp_path: Path) -> None:
    server, url = gateway
    process = await start(scenario(tmp_path, "held"), url)
    async with asyncio.timeout(30):
        await server.held.wait()
    process.send_signal(signal.SIGINT)
    code, out, _ = await ended(process)
    report = report_in(out)
    assert (code, report.is_interrupted) == (130, True)
    assert report.summary.errors.keys() == {"client_cancelled"}


async def test_wrong_scenario_says_which_field_and_prints_no_json(tmp_path: Path) -> None:
    path = scenario(tmp_path, "warm", extra="speed = 3\n")
    code, out, err = await ended(await start(path, "http://127.0.0.1:1"))
    assert (code, out) == (2, "")
    assert "'popularity.speed' is not a known field" in err


async def test_missing_key_names_its_variable(tmp_path: Path) -> None:
    code, _, err = await ended(await start(scenario(tmp_path, "warm"), "http://127.0.0.1:1", key=""))
    assert code == 2
    assert "OCTAVO_KEY" in err
