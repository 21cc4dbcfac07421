"""The gateway as a process: settings, signals, and an orderly end."""

import asyncio
import os
import sys
from pathlib import Path

import httpx
import pytest

from octavo_cli.processes import Process, answers_http, free_port
from octavo_shared.config import StoreSettings
from support.fakes import Exchange, FakeWorker
from support.gateway_world import gateway_world

COMMAND = [sys.executable, "-c", "from octavo_gateway.service import main; main()"]


def environ(settings: StoreSettings, port: int) -> dict[str, str]:
    ours = {
        "OCTAVO_NATS_URL": settings.nats_url,
        "OCTAVO_HTTP_PORT": str(port),
        "OCTAVO_S3_ENDPOINT": settings.s3_endpoint,
        "OCTAVO_S3_ACCESS_KEY": settings.s3_access_key,
        "OCTAVO_S3_SECRET_KEY": settings.s3_secret_key,
        "OCTAVO_S3_BUCKET": settings.s3_bucket,
    }
    return dict(os.environ) | ours


async def test_stopped_process_finishes_its_stream_and_ends_with_0(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    port, may_end = free_port(), asyncio.Event()
    async with gateway_world(store_settings) as world:

        async def slow(exchange: Exchange) -> None:
            await exchange.started()
            await exchange.tokens(0, world.tokens[:2])
            await may_end.wait()
            await exchange.tokens(2, world.tokens[2:])
            await exchange.finished(len(world.tokens))

        process = Process("gateway", COMMAND, tmp_path / "gateway.log", environ(world.settings, port))
        await process.start()
        async with FakeWorker(world.bus, "w1", slow), httpx.AsyncClient(timeout=20) as http:
            await process.wait_ready(lambda: answers_http("127.0.0.1", port, "/readyz"), 30)
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            async with http.stream("POST", url, json=world.body(stream=True), headers=world.key()) as response:
                lines = response.aiter_lines()
                assert "assistant" in await anext(lines)
                stopping = asyncio.create_task(process.stop())
                # It says that it stops before it has finished, so that others get what comes.
                async with asyncio.timeout(10):
                    while await answers_http("127.0.0.1", port, "/readyz"):
                        await asyncio.sleep(0.02)
                may_end.set()
                rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            await stopping
            assert not process.is_running
            log = (tmp_path / "gateway.log").read_text()
            assert "service_stopped" in log
            assert log.count("request_finished") == 1
            assert world.alice not in log
            assert "diary" not in log


@pytest.mark.parametrize(
    "setting",
    [
        {"OCTAVO_NUM_IN_FLIGTH_MAX": "5"},
        {"OCTAVO_NUM_IN_FLIGHT_MAX": "0"},
        {"OCTAVO_REQUESTS_PER_S": "0"},
        {"OCTAVO_LOG_LEVEL": "loud"},
        {"OCTAVO_HTTP_PORT": "70000"},
    ],
    ids=str,
)
async def test_a_wrong_setting_refuses_to_start_and_is_named(
    store_settings: StoreSettings, tmp_path: Path, setting: dict[str, str]
) -> None:
    values = environ(store_settings, free_port()) | setting
    child = await asyncio.create_subprocess_exec(*COMMAND, env=values, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        _, error = await child.communicate()
    assert child.returncode == 2
    assert next(iter(setting)).encode() in error
    assert b"Traceback" not in error
