"""What breaks while people wait: workers, the gateway, the manager, NATS and S3. Each test repairs what it broke."""

import asyncio
from collections.abc import Awaitable

import pytest

from support.live import Live, Stream, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = 160
"""Tokens; long enough to be in the middle of when something dies."""


async def begin(live: Live, max_tokens: int = LONG) -> tuple[Stream, asyncio.Task[Stream], str]:
    """Start a streamed answer of alice's; returns once text has come and the worker that computes it is known."""
    await live.idle()
    stream = Stream()
    reading = asyncio.create_task(live.read(stream, live.alice.adapter, live.alice.key, max_tokens))
    began = asyncio.create_task(stream.began.wait())
    await asyncio.wait((reading, began), timeout=60, return_when=asyncio.FIRST_COMPLETED)
    assert stream.began.is_set(), "no text came"
    return stream, reading, await live.running_on()


async def ends(reading: Awaitable[Stream]) -> Stream:
    return await asyncio.wait_for(reading, 90)


async def make_cold(live: Live) -> None:
    report = await live.command(live.bob.key, lambda client: client.evict(live.bob.adapter))
    assert report.pinned == ()


async def test_a_stream_goes_on_when_its_worker_is_killed_with_no_token_repeated_or_missing(live: Live) -> None:
    await live.workers(2)
    undisturbed = await live.read(Stream(), live.alice.adapter, live.alice.key, LONG)
    stream, reading, worker = await begin(live)
    num_before = len(stream.pieces)
    assert num_before < LONG / 2, "it is in the middle"
    live.fleet.kill(worker)
    await ends(reading)
    assert stream.error is None
    assert stream.is_done
    assert stream.text == undisturbed.text
    assert num_before < len(stream.pieces)
    assert stream.usage["completion_tokens"] == undisturbed.usage["completion_tokens"]
    other = next(seen for seen in (await live.view()).workers if seen.worker_id != worker)
    assert live.alice.digest in {placed.digest for placed in other.placed}, "the other worker loaded it to go on"


async def test_without_another_worker_a_stream_ends_with_an_error_event(live: Live) -> None:
    await live.workers(1)
    stream, reading, worker = await begin(live)
    live.fleet.kill(worker)
    await ends(reading)
    assert stream.error is not None
    assert stream.error["code"] == "worker_lost"
    assert not stream.is_done
    refused = await live.ask(live.alice.adapter, live.alice.key)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "no_worker")
    await live.workers(1)
    assert (await live.ask(live.alice.adapter, live.alice.key)).status_code == 200


async def test_a_killed_gateway_leaves_no_sequence_running(live: Live) -> None:
    await live.workers(1)
    _, reading, _ = await begin(live, max_tokens=1500)
    live.fleet.kill("gateway")
    await asyncio.gather(reading, return_exceptions=True)
    try:
        await live.idle()
    finally:
        await live.fleet.restart("gateway")
    assert (await live.ask(live.alice.adapter, live.alice.key)).status_code == 200


async def test_without_the_residency_manager_a_worker_loads_by_itself(live: Live) -> None:
    await live.workers(1)
    await make_cold(live)
    live.fleet.kill("residency")
    try:
        answer = await live.ask(live.bob.adapter, live.bob.key)
        assert (answer.status_code, answer.headers.get("octavo-tier")) == (200, "cold")
    finally:
        await live.fleet.restart("residency")
    await live.workers(1)


async def test_without_s3_what_is_resident_is_served_and_what_is_cold_is_a_503(live: Live) -> None:
    await live.workers(1)
    assert (await live.ask(live.alice.adapter, live.alice.key)).status_code == 200
    await make_cold(live)
    await live.fleet.s3.stop()
    try:
        resident = await live.ask(live.alice.adapter, live.alice.key)
        assert (resident.status_code, resident.headers["octavo-tier"]) == (200, "resident")
        cold = await live.ask(live.bob.adapter, live.bob.key)
        assert cold.status_code == 503
        assert cold.json()["error"]["code"] in ("adapter_unavailable", "dependency_unavailable")
    finally:
        await live.fleet.s3.start()

    async def is_back() -> bool:
        return (await live.ask(live.bob.adapter, live.bob.key)).status_code == 200

    await until(is_back, "a cold adapter is not served though S3 is back")


async def test_without_nats_requests_fail_at_once_and_all_recovers(live: Live) -> None:
    await live.workers(1)
    await live.fleet.nats.stop()
    try:
        async with asyncio.timeout(15):
            refused = await live.ask(live.alice.adapter, live.alice.key)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "dependency_unavailable")
    finally:
        await live.fleet.nats.start()

    async def is_back() -> bool:
        return (await live.ask(live.alice.adapter, live.alice.key)).status_code == 200

    await until(is_back, "nothing is served though NATS is back")
    assert await live.workers(1)
    history = await live.command(live.alice.key, lambda client: client.history(live.alice.adapter))
    assert history, "what was committed is still there"
