"""What a gateway counts of each request, however it ends, and how that comes to the stream of usage, once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import msgspec
import pytest
from nats.errors import Error as NatsError
from structlog.testing import capture_logs

from octavo_gateway import metrics
from octavo_gateway.meter import Meter
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterUnavailable
from octavo_shared.messages.usage import ROWS_MAX, Quota, QuotaUse, SetQuota, UsageRecord, UsageRow, day_of
from octavo_shared.references import AdapterId, TenantId
from octavo_shared.tasks import end
from support.days import begin_in_one_day
from support.fakes import Exchange
from support.gateway_world import World, gateway_world
from support.identity_rig import own_nats

CHAT = "/v1/chat/completions"
HOME = TenantId("t-home")


@pytest.fixture(autouse=True)
def one_day() -> None:
    begin_in_one_day()


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings) as made:
        yield made


async def records(bus: Bus, gateway_id: str) -> list[UsageRecord]:
    """Return all records of a gateway that are in the stream."""
    jetstream = bus.jetstream
    state = (await jetstream.stream_info(subjects.USAGE_STREAM)).state
    found = [await jetstream.get_msg(subjects.USAGE_STREAM, seq=number)
             for number in range(max(1, state.first_seq), state.last_seq + 1)]  # fmt: skip
    wanted = [message.data for message in found if message.subject == subjects.usage(gateway_id)]
    return [msgspec.msgpack.decode(data or b"", type=UsageRecord) for data in wanted]


def added(found: list[UsageRecord]) -> set[UsageRow]:
    """Return one row of each tenant and adapter; each record may be there once."""
    assert [record.number for record in found] == list(range(1, len(found) + 1))
    sums: dict[tuple[TenantId, AdapterId, int], tuple[int, int, int]] = {}
    for row in (row for record in found for row in record.rows):
        before = sums.get((row.tenant_id, row.adapter_id, row.day), (0, 0, 0))
        used = (row.num_requests, row.num_prompt_tokens, row.num_completion_tokens)
        sums[row.tenant_id, row.adapter_id, row.day] = (
            before[0] + used[0], before[1] + used[1], before[2] + used[2],
        )  # fmt: skip
    return {UsageRow(*key, *used) for key, used in sums.items()}


async def counted(world: World, num_requests: int) -> set[UsageRow]:
    """Return what this world's gateway has told, once so many requests are in it; no more may come."""
    async with asyncio.timeout(10):
        while True:
            rows = added(await records(world.bus, world.gateway.gateway_id))
            if sum(row.num_requests for row in rows) >= num_requests:
                return rows
            await asyncio.sleep(0.05)


def of_diary(world: World, requests: int, prompt: int, completion: int) -> UsageRow:
    return UsageRow(
        TenantId("t-alice"), world.diary.adapter_id, day_of(wall_ms()), requests, prompt * requests, completion
    )


async def test_tokens_are_counted_by_what_was_delivered_to_whom_and_of_what(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(world.tokens)

    worker = await world.add_worker("w1", script)
    num_tokens = len(world.tokens)
    assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
    # Several answers have one prompt.
    body = world.body(n=3, max_tokens=2)
    assert (await world.http.post(CHAT, json=body, headers=world.key())).status_code == 200
    # A stop string ends the answer on its way; what came behind it was not delivered.
    stopped = await world.http.post(CHAT, json=world.body(stop=["answer"]), headers=world.key())
    num_stopped = stopped.json()["usage"]["completion_tokens"]
    assert 0 < num_stopped < num_tokens
    base = {"model": "tiny-base", "prompt": "hi", "max_tokens": 1}
    assert (await world.http.post("/v1/completions", json=base, headers=world.key(world.bob))).status_code == 200
    prompt = len(worker.received[0].prompt)
    # Neither a request that is refused is one, nor what is asked without a key.
    for body, key in ((world.body(temperature=-1), world.alice), (world.body(), world.bob), (world.body(), "oct_")):
        assert (await world.http.post(CHAT, json=body, headers=world.key(key))).status_code >= 400
    assert await counted(world, 4) == {
        of_diary(world, 3, prompt, num_tokens + 6 + num_stopped),
        UsageRow(TenantId("t-bob"), AdapterId(""), day_of(wall_ms()), 1, len(worker.received[-1].prompt), 1),
    }


async def test_a_request_that_moves_on_counts_once_and_each_token_once(world: World) -> None:
    exchanges: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        exchanges.append(exchange)
        if len(exchanges) == 1:
            await exchange.started()
            await exchange.tokens(0, world.tokens[:7])
            exchange.worker.die()
        else:
            await exchange.tokens(7, world.tokens[:3], attempt=exchanges[0].generate.attempt)
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
    assert len(exchanges) == 2
    prompt = len(exchanges[0].generate.prompt)
    assert await counted(world, 1) == {of_diary(world, 1, prompt, len(world.tokens))}


async def test_a_request_whose_caller_leaves_counts_what_it_was_given(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:5])
        await exchange.is_cancelled.wait()

    worker = await world.add_worker("w1", script)
    async with world.http.stream("POST", CHAT, json=world.body(stream=True), headers=world.key()) as response:
        async for line in response.aiter_lines():
            if '"content":"' in line and '"content":""' not in line:
                break
    await asyncio.wait_for(worker.cancelled.get(), 10)
    prompt = len(worker.received[0].prompt)
    assert await counted(world, 1) == {of_diary(world, 1, prompt, 5)}


async def test_a_request_that_fails_counts_what_it_was_given_and_nothing_if_none_began(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        if len(worker.received) > 1:
            await exchange.started()
            await exchange.tokens(0, world.tokens[:4])
        await exchange.failed(AdapterUnavailable("it is broken"))

    worker = await world.add_worker("w1", script)
    for _ in range(2):
        assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 503
    prompt = len(worker.received[0].prompt)
    assert await counted(world, 1) == {of_diary(world, 1, prompt, 4)}


async def test_what_is_not_told_yet_is_told_when_the_gateway_stops(store_settings: StoreSettings) -> None:
    async with gateway_world(store_settings) as world:

        async def script(exchange: Exchange) -> None:
            await exchange.answer(world.tokens)

        await world.add_worker("w1", script)
        assert (await world.http.post(CHAT, json=world.body(), headers=world.key())).status_code == 200
        gateway_id, settings = world.gateway.gateway_id, world.settings
    async with Bus(settings.nats_url, "test") as bus:
        assert sum(row.num_requests for row in added(await records(bus, gateway_id))) == 1


async def with_stream(bus: Bus) -> None:
    await bus.jetstream.add_stream(name=subjects.USAGE_STREAM, subjects=list(subjects.USAGE_SUBJECTS))


async def test_what_is_counted_while_nats_is_away_is_told_once_when_it_is_back(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "meter") as bus:
        await with_stream(bus)
        meter = Meter(bus, "gw-1")
        running = asyncio.create_task(meter.run())
        try:
            meter.count(HOME, None, 1, 2)
            await told(bus, 1)
            await nats.stop()
            for _ in range(50):
                meter.count(HOME, AdapterId("a" * 32), 1, 2)
                await asyncio.sleep(0.05)
            await nats.start()
            await told(bus, 51)
        finally:
            await end(running)
        found = added(await records(bus, "gw-1"))
    assert found == {
        UsageRow(HOME, AdapterId(""), day_of(wall_ms()), 1, 1, 2),
        UsageRow(HOME, AdapterId("a" * 32), day_of(wall_ms()), 50, 50, 100),
    }


async def told(bus: Bus, num_requests: int) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(NatsError, OSError):
                found = await records(bus, "gw-1")
                if sum(row.num_requests for record in found for row in record.rows) >= num_requests:
                    return
            await asyncio.sleep(0.05)


async def test_a_record_whose_acknowledgement_was_lost_is_sent_again_as_it_was(tmp_path: Path) -> None:
    """A meter between two servers' worth of trouble: the stream takes the record, and nobody says so."""
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "meter") as bus:
        await with_stream(bus)
        meter = Meter(bus, "gw-1")
        meter.count(HOME, None, 1, 2)
        sealed = meter._seal()
        assert await meter._publish(sealed)
        meter._sealed = sealed
        meter.count(HOME, None, 10, 20)
        await meter.close()
        assert [record.number for record in await records(bus, "gw-1")] == [1, 2]
        assert added(await records(bus, "gw-1")) == {UsageRow(HOME, AdapterId(""), day_of(wall_ms()), 2, 11, 22)}


async def test_what_does_not_fit_is_lost_and_said(tmp_path: Path) -> None:
    before = metrics.USAGE_LOST._value.get()
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "meter") as bus:
        # There is no stream to tell it to.
        meter = Meter(bus, "gw-1", num_rows_max=2)
        with capture_logs() as logs:
            for number in range(4):
                meter.count(HOME, AdapterId(str(number)), 1, 2)
            meter.count(HOME, AdapterId("0"), 1, 2)
            await meter.close()
    lost = [entry["num_requests"] for entry in logs if entry["event"] == "usage_lost"]
    # Two for which there was no room, and the other three when the gateway stopped.
    assert lost == [5]
    assert metrics.USAGE_LOST._value.get() == before + 5


async def test_many_adapters_go_out_in_records_of_bounded_size(tmp_path: Path) -> None:
    async with own_nats(tmp_path / "nats") as nats, Bus(nats.url, "meter") as bus:
        await with_stream(bus)
        meter = Meter(bus, "gw-1")
        for number in range(2 * ROWS_MAX + 1):
            meter.count(HOME, AdapterId(f"{number:032x}"), 1_000_000, 1_000_000)
        await meter.close()
        found = await records(bus, "gw-1")
    assert [len(record.rows) for record in found] == [ROWS_MAX, ROWS_MAX, 1]
    assert len(added(found)) == 2 * ROWS_MAX + 1


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/tenants/alice/usage", "/v1/adapters/alice/diary/usage"])
async def test_usage_is_read_over_http_and_a_wrong_number_of_days_named(world: World, path: str) -> None:
    answer = await world.http.get(path, headers=world.key(), params={"days": 7})
    assert answer.status_code == 200
    assert answer.json()["days"][0]["num_prompt_tokens"] == 2
    refused: httpx.Response = await world.http.get(path, headers=world.key(), params={"days": "many"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "days")


async def test_a_tenant_that_has_used_its_tokens_is_refused_by_name_until_the_day_ends(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(world.tokens)

    worker = await world.add_worker("w1", script)
    world.identity.exhausted["alice"] = QuotaUse(Quota.TOKENS_PER_DAY, 100, 120)
    for body in (world.body(), world.body(stream=True), world.body(model="tiny-base")):
        answer = await world.http.post(CHAT, json=body, headers=world.key())
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "daily_quota_exceeded")
        assert {"quota": "tokens_per_day", "limit": 100, "used": 120}.items() <= error["fields"].items()
        left_s = 86_400 - wall_ms() / 1000 % 86_400
        assert abs(int(answer.headers["retry-after"]) - left_s) <= 30
    raw = await world.bus.client.request(
        subjects.GENERATE, msgspec.json.encode(world.body()), 5, headers={"Authorization": f"Bearer {world.alice}"}
    )
    assert msgspec.json.decode(raw.data)["error"]["code"] == "daily_quota_exceeded"
    assert worker.received == []
    # It still sees, and the others still ask.
    assert (await world.http.get("/v1/models", headers=world.key())).status_code == 200
    base = world.body(model="tiny-base")
    assert (await world.http.post(CHAT, json=base, headers=world.key(world.bob))).status_code == 200


async def test_quotas_are_set_over_http_and_what_is_wrong_is_named(world: World) -> None:
    path = "/v1/tenants/alice/quotas"
    answer = await world.http.patch(path, headers=world.key(), json={"tokens_per_day": 5, "adapters": None})
    assert (answer.status_code, answer.json()["quotas"]["tokens_per_day"]) == (200, 5)
    (order,) = world.identity.writes
    assert isinstance(order, SetQuota)
    assert (order.tenant, order.limits) == ("alice", {Quota.TOKENS_PER_DAY: 5, Quota.ADAPTERS: None})
    for body in ({"tokens": 5}, {"adapters": "many"}, {"adapters": 1.5}, []):
        assert (await world.http.patch(path, headers=world.key(), json=body)).status_code == 400, body
