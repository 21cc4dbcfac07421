"""What the gateway refuses, and does when nobody can serve or the client leaves, from a real HTTP socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from octavo_gateway.credentials import new_key
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterUnavailable
from support.fakes import CONTEXT_TOKENS, Exchange
from support.gateway_world import World, gateway_world

CHAT = "/v1/chat/completions"
UNCOMPILABLE = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {"type": "object"}}}}


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings) as made:
        yield made


async def answering(world: World, worker_id: str = "w1") -> None:
    await world.add_worker(worker_id, lambda exchange: exchange.answer(world.tokens))


async def test_whoever_only_sends_headers_takes_no_place(store_settings: StoreSettings) -> None:
    async with gateway_world(store_settings, num_in_flight_max=2) as world:
        await answering(world)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {new_key()[0]}\r\nContent-Length: 9\r\n\r\n"
        idle = [await asyncio.open_connection("127.0.0.1", world.settings.http_port) for _ in range(4)]
        try:
            for _, writer in idle:
                writer.write(head.encode())
                await writer.drain()
            for _ in range(3):
                assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
        finally:
            for _, writer in idle:
                writer.close()


async def test_every_refusal_is_openais_error_body(world: World) -> None:
    await answering(world)
    long = "hello " * 4 * CONTEXT_TOKENS
    cases: list[tuple[int, str, str | None, object, dict[str, str]]] = [
        (401, "unauthenticated", None, world.body(), {}),
        (401, "unauthenticated", None, world.body(), world.key("oct_" + "0" * 16 + "_" + "0" * 64)),
        (404, "adapter_not_found", None, world.body(model="alice/none"), world.key()),
        (400, "invalid_request", "model", world.body(model="Not A Name"), world.key()),
        (400, "invalid_request", "temperature", world.body(temperature="hot"), world.key()),
        (400, "unsupported_parameter", "store", world.body(store=True), world.key()),
        (400, "invalid_request", "top_kk", world.body(top_kk=2), world.key()),
        (400, "invalid_request", "n", world.body(n=100), world.key()),
        (400, "invalid_request", "logit_bias", world.body(logit_bias={"999999": 1}), world.key()),
        (400, "invalid_request", "response_format", world.body(response_format=UNCOMPILABLE), world.key()),
        (
            400,
            "context_length_exceeded",
            "messages",
            world.body(messages=[{"role": "user", "content": long}]),
            world.key(),
        ),
        (400, "context_length_exceeded", "max_tokens", world.body(max_tokens=CONTEXT_TOKENS), world.key()),
    ]
    for status, code, param, body, headers in cases:
        response = await world.http.post(CHAT, json=body, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert response.json()["error"]["param"] == param
        assert set(response.json()["error"]) == {"message", "type", "param", "code", "fields"}
    for method, path, content, status in (
        ("POST", CHAT, b"{", 400),
        ("GET", CHAT, b"", 405),
        ("GET", "/v2/nothing", b"", 404),
        ("POST", CHAT, b" " * (5 * 1024 * 1024), 413),
    ):
        response = await world.http.request(method, path, content=content, headers=world.key())
        assert response.status_code == status, path
        assert response.json()["error"]["message"]
    assert world.gateway.admission.num_in_flight == 0


async def test_foreign_and_unknown_adapters_look_the_same(world: World) -> None:
    await answering(world)
    foreign = await world.http.post(CHAT, json=world.body(), headers=world.key(world.bob))
    unknown = await world.http.post(CHAT, json=world.body(model="alice/nothing"), headers=world.key(world.bob))
    assert foreign.status_code == unknown.status_code == 404
    assert foreign.content == unknown.content
    assert set(foreign.headers) == set(unknown.headers)


async def test_without_worker_503(world: World) -> None:
    response = await world.http.post(CHAT, json=world.body(), headers=world.key())
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
    assert (await world.http.get("/readyz")).status_code == 503
    assert (await world.http.get("/livez")).status_code == 200
    await answering(world)
    assert (await world.http.get("/readyz")).status_code == 200


async def test_headers_wait_for_started(world: World) -> None:
    may_start = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await may_start.wait()
        await exchange.answer(world.tokens)

    worker = await world.add_worker("w1", slow)
    request = world.http.build_request("POST", CHAT, json=world.body(stream=True), headers=world.key())
    sending = asyncio.create_task(world.http.send(request, stream=True))
    await world.until(lambda: worker.received)
    assert not sending.done()
    may_start.set()
    response = await sending
    assert response.status_code == 200
    await response.aclose()


async def test_failure_before_started_is_a_real_503(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.failed(AdapterUnavailable("the store is away")))
    response = await world.http.post(CHAT, json=world.body(stream=True), headers=world.key())
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "adapter_unavailable"


async def test_client_that_leaves_cancels_on_the_worker_before_and_after_started(world: World) -> None:
    async def hanging(exchange: Exchange) -> None:
        if len(exchange.worker.received) > 1:
            await exchange.started()
            await exchange.tokens(0, world.tokens[:3])
        await exchange.is_cancelled.wait()

    worker = await world.add_worker("w1", hanging)
    early = asyncio.create_task(world.http.post(CHAT, json=world.body(), headers=world.key()))
    await world.until(lambda: worker.received)
    early.cancel()
    async with asyncio.timeout(5):
        assert await worker.cancelled.get() == worker.received[0].request_id
    async with world.http.stream("POST", CHAT, json=world.body(stream=True), headers=world.key()) as response:
        await anext(response.aiter_lines())
    async with asyncio.timeout(5):
        assert await worker.cancelled.get() == worker.received[1].request_id
    await world.until(lambda: world.gateway.admission.num_in_flight == 0)


async def test_rate_is_shed_with_a_truthful_delay(store_settings: StoreSettings) -> None:
    async with gateway_world(store_settings, requests_per_s=0.25, requests_burst=1) as world:
        await answering(world)
        assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
        shed = await world.http.post(CHAT, json=world.body(), headers=world.key())
        assert shed.status_code == 429
        assert shed.json()["error"]["code"] == "overloaded"
        assert 1 <= int(shed.headers["retry-after"]) <= 4
        other = await world.http.post(CHAT, json=world.body(), headers=world.key(world.bob))
        assert other.status_code == 404


async def test_in_flight_bound_sheds(store_settings: StoreSettings) -> None:
    async with gateway_world(store_settings, num_in_flight_max=1) as world:
        may_start = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await may_start.wait()
            await exchange.answer(world.tokens)

        worker = await world.add_worker("w1", slow)
        first = asyncio.create_task(world.http.post(CHAT, json=world.body(), headers=world.key()))
        await world.until(lambda: worker.received)
        shed = await world.http.post(CHAT, json=world.body(), headers=world.key())
        assert shed.status_code == 429
        assert int(shed.headers["retry-after"]) >= 1
        may_start.set()
        assert (await first).status_code == 200
