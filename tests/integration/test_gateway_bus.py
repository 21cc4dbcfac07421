"""The NATS entry, the lease, and what happens when NATS, S3 or identity is away."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo_cli.local_servers import NatsServer, S3Server
from octavo_gateway import front
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.messages.generation import Lease
from support.fake_identity import UPLOAD_ID
from support.fakes import BASE_NAME, Exchange
from support.gateway_world import ANSWER, World, gateway_world

CHAT = "/v1/chat/completions"


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings) as made:
        yield made


async def ask(world: World, body: object, key: str | None) -> list[Msg]:
    """Publish to the public subject as ``nats pub`` would; return all replies up to the final one."""
    headers = {"Authorization": f"Bearer {key}"} if key else None
    replies: list[Msg] = []
    async with world.bus.inbox() as (reply, inbox), asyncio.timeout(10):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await world.bus.client.publish(subjects.GENERATE, data, reply=reply, headers=headers)
        while not replies or "octavo-final" not in (replies[-1].headers or {}):
            replies.append(await inbox.next_msg(timeout=10))
    return replies


async def test_nats_entry_streams_what_http_streams(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    replies = await ask(world, world.body(stream_options={"include_usage": True}), world.alice)
    assert replies[0].headers is not None
    assert replies[0].headers["octavo-revision"] == "3"
    assert replies[0].headers["octavo-digest"] == world.diary.digest
    chunks = [json.loads(reply.data) for reply in replies]
    async with world.http.stream(
        "POST", CHAT, json=world.body(stream=True, stream_options={"include_usage": True}), headers=world.key()
    ) as response:
        lines = [line async for line in response.aiter_lines() if line]
    over_http = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    for chunk in (*chunks, *over_http):
        for name in ("id", "created"):
            del chunk[name]
    assert chunks == over_http
    assert chunks[-1]["usage"]["completion_tokens"] == len(world.tokens)
    assert all("octavo-final" not in (reply.headers or {}) for reply in replies[:-1])


async def test_nats_entry_answers_once_when_no_stream_is_wanted(world: World) -> None:
    await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    (reply,) = await ask(world, {"model": BASE_NAME, "prompt": "hi", "max_tokens": 99, "stream": False}, world.alice)
    assert json.loads(reply.data)["choices"][0]["text"] == ANSWER


async def test_nats_entry_refuses_in_openais_form(world: World) -> None:
    cases = (
        (world.body(), None, "unauthenticated"),
        (world.body(), world.bob, "adapter_not_found"),
        (world.body(store=True), world.alice, "unsupported_parameter"),
        (b"{", world.alice, "invalid_request"),
        (world.body(), world.alice, "no_worker"),
    )
    for body, key, code in cases:
        (reply,) = await ask(world, body, key)
        assert json.loads(reply.data)["error"]["code"] == code


async def test_request_without_reply_subject_is_dropped(world: World) -> None:
    worker = await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
    await world.bus.client.publish(
        subjects.GENERATE, json.dumps(world.body()).encode(), headers={"Authorization": f"Bearer {world.alice}"}
    )
    await ask(world, world.body(), world.alice)
    assert len(worker.received) == 1


async def test_both_entries_share_one_bound(store_settings: StoreSettings) -> None:
    async with gateway_world(store_settings, num_in_flight_max=1) as world:
        may_start = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await may_start.wait()
            await exchange.answer(world.tokens)

        worker = await world.add_worker("w1", slow)
        first = asyncio.create_task(world.http.post(CHAT, json=world.body(), headers=world.key()))
        await world.until(lambda: worker.received)
        (reply,) = await ask(world, world.body(), world.alice)
        assert json.loads(reply.data)["error"]["code"] == "overloaded"
        may_start.set()
        assert (await first).status_code == 200


async def test_messages_beyond_the_bound_are_refused_at_once_and_never_queued(store_settings: StoreSettings) -> None:
    bound, num_asked = 256, 400
    async with gateway_world(store_settings, requests_per_s=10_000.0, requests_burst=10_000) as world:
        assert world.settings.num_in_flight_max == bound
        may_start = asyncio.Event()

        async def slow(exchange: Exchange) -> None:
            await may_start.wait()
            await exchange.answer(world.tokens)

        await world.add_worker("w1", slow)
        async with world.bus.inbox() as (reply, inbox):
            content, headers = json.dumps(world.body(stream=False)).encode(), {"Authorization": f"Bearer {world.alice}"}
            for _ in range(num_asked):
                await world.bus.client.publish(subjects.GENERATE, content, reply=reply, headers=headers)
            refused = [await inbox.next_msg(timeout=10) for _ in range(num_asked - bound)]
            assert {json.loads(message.data)["error"]["code"] for message in refused} == {"overloaded"}
            may_start.set()
            answered = [await inbox.next_msg(timeout=20) for _ in range(bound)]
            assert all(b"choices" in message.data for message in answered)


async def test_gateway_leases_its_requests(world: World) -> None:
    heard: asyncio.Queue[Lease] = asyncio.Queue()

    async def on_lease(lease: Lease) -> None:
        heard.put_nowait(lease)

    await world.bus.serve(subjects.LEASE, Lease, on_lease)
    async with asyncio.timeout(5):
        assert (await heard.get()).gateway_id == world.gateway.gateway_id


async def test_stopping_gateway_finishes_what_runs_and_refuses_what_comes(store_settings: StoreSettings) -> None:
    may_end = asyncio.Event()
    async with gateway_world(store_settings) as world:

        async def slow(exchange: Exchange) -> None:
            await exchange.started()
            await may_end.wait()
            await exchange.answer(world.tokens)

        worker = await world.add_worker("w1", slow)
        first = asyncio.create_task(world.http.post(CHAT, json=world.body(), headers=world.key()))
        await world.until(lambda: worker.received)
        world.gateway.admission.close()
        refused = await world.http.post(CHAT, json=world.body(), headers=world.key())
        assert refused.status_code == 503
        may_end.set()
        assert (await first).status_code == 200


async def test_trace_goes_from_the_caller_through_to_the_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(front, "tracer", provider.get_tracer("test"))
    seen: list[int] = []

    async def script(exchange: Exchange) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)
        await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = world.key() | {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    response = await world.http.post(CHAT, json=world.body(max_tokens=6), headers=headers)
    assert response.headers["octavo-trace-id"] == trace_id
    assert [format(number, "032x") for number in seen] == [trace_id]
    await world.until(exporter.get_finished_spans)
    (span,) = exporter.get_finished_spans()
    assert span.name == f"chat {BASE_NAME}"
    assert span.attributes is not None
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.request.max_tokens"] == 6
    assert span.attributes["gen_ai.usage.output_tokens"] == 6
    assert "diary" not in str(dict(span.attributes))
    provider.shutdown()


async def test_gateway_outlives_nats_and_s3(tmp_path: Path) -> None:
    nats, store = NatsServer(tmp_path / "nats"), S3Server(tmp_path / "s3")
    await asyncio.gather(nats.start(), store.start())
    settings = StoreSettings(
        nats_url=nats.url,
        s3_endpoint=store.endpoint,
        s3_access_key=store.access_key,
        s3_secret_key=store.secret_key,
        s3_bucket="outlives",
    )
    try:
        async with gateway_world(settings) as world:
            await world.add_worker("w1", lambda exchange: exchange.answer(world.tokens))
            await store.stop()
            # What is known is served on without object storage; what needs it says so.
            assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
            staged = await world.http.put(
                f"/v1/uploads/{UPLOAD_ID}/adapter_config.json", content=b"{}", headers=world.key()
            )
            assert (staged.status_code, staged.json()["error"]["code"]) == (503, "dependency_unavailable")
            await nats.stop()
            await world.until(lambda: not world.gateway.is_ready())
            away = await world.http.post(CHAT, json=world.body(), headers=world.key())
            assert away.status_code == 503
            assert (await world.http.get("/livez")).status_code == 200
            await nats.start()
            await world.until(world.gateway.is_ready)
            assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
    finally:
        await asyncio.gather(nats.stop(), store.stop())
