"""Lost workers, lost messages, busy workers: the caller sees one unbroken answer or one clear end."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from octavo_shared.config import StoreSettings
from octavo_shared.errors import AdapterUnavailable, WorkerLost
from octavo_shared.messages.fleet import HEARTBEAT_TIMEOUT_MS, WorkerState
from octavo_shared.messages.generation import FinishReason
from octavo_shared.references import Digest
from support.fakes import Exchange, FakeWorker, chunks_of
from support.gateway_world import ANSWER, WAITS, World, gateway_world

CHAT = "/v1/chat/completions"


@pytest.fixture
async def world(store_settings: StoreSettings) -> AsyncIterator[World]:
    async with gateway_world(store_settings) as made:
        yield made


async def streamed(world: World) -> tuple[str, list[str]]:
    """Return the text and all data of one streamed answer that began well."""
    async with world.http.stream("POST", CHAT, json=world.body(stream=True, seed=11), headers=world.key()) as response:
        assert response.status_code == 200
        data = await chunks_of(response.aiter_lines())
    chunks = [json.loads(item) for item in data if item != "[DONE]"]
    choices = [chunk["choices"][0] for chunk in chunks if "choices" in chunk]
    return "".join(choice["delta"].get("content", "") for choice in choices), data


class Relay:
    """Two workers with one script: the first to be asked delivers seven tokens and then breaks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.exchanges: list[Exchange] = []

    async def begin(self, exchange: Exchange) -> bool:
        """Return True when this is the first attempt, with its seven tokens sent."""
        self.exchanges.append(exchange)
        if len(self.exchanges) > 1:
            return False
        await exchange.started()
        await exchange.tokens(0, self.world.tokens[:7])
        return True

    def check_second(self) -> None:
        """The second attempt is the same request with a forced prefix."""
        first, second = (exchange.generate for exchange in self.exchanges[:2])
        assert second.forced == tuple(self.world.tokens[:7])
        assert second.attempt > first.attempt
        assert (second.request_id, second.sampling, second.adapter, second.prompt, second.base) == (
            first.request_id,
            first.sampling,
            first.adapter,
            first.prompt,
            first.base,
        )
        assert second.sampling.seed == 11


async def test_lost_worker_is_followed_by_another_without_a_missing_or_repeated_token(world: World) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if await relay.begin(exchange):
            exchange.worker.die()
        else:
            # What the dead worker still had on its way is of an old attempt.
            await exchange.tokens(7, world.tokens[:3], attempt=relay.exchanges[0].generate.attempt)
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    text, data = await streamed(world)
    assert text == ANSWER
    assert data[-1] == "[DONE]"
    relay.check_second()
    assert relay.exchanges[0].worker is not relay.exchanges[1].worker


async def test_a_request_in_flight_ends_with_what_it_started_with_also_on_another_worker(world: World) -> None:
    relay = Relay(world)
    old, new = world.diary, None

    async def script(exchange: Exchange) -> None:
        nonlocal new
        if await relay.begin(exchange):
            # Its alias moves in the middle of the answer, and then the worker is lost.
            new = world.identity.add_adapter("alice/diary", {"alice@alice"}, b"another pack")
            exchange.worker.die()
        else:
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    text, _ = await streamed(world)
    assert text == ANSWER
    relay.check_second()
    assert relay.exchanges[0].generate.adapter == relay.exchanges[1].generate.adapter == old
    assert (await streamed(world))[0] == ANSWER
    assert relay.exchanges[2].generate.adapter == new != old


async def test_lost_worker_without_another_ends_in_a_terminal_error_event(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:4])
        exchange.worker.die()

    await world.add_worker("w1", script)
    text, data = await streamed(world)
    assert ANSWER.startswith(text)
    assert json.loads(data[-1])["error"]["code"] == "worker_lost"
    assert world.gateway.admission.num_in_flight == 0


async def test_restarted_worker_goes_on_from_the_forced_prefix(world: World) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if await relay.begin(exchange):
            exchange.worker.epoch += 1
            await exchange.worker.beat()
        else:
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    assert (await streamed(world))[0] == ANSWER
    relay.check_second()


async def test_draining_worker_hands_over(world: World) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if await relay.begin(exchange):
            exchange.worker.state = WorkerState.DRAINING
            await exchange.worker.beat()
            await exchange.is_cancelled.wait()
        else:
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    assert (await streamed(world))[0] == ANSWER
    relay.check_second()
    assert relay.exchanges[0].is_cancelled.is_set()


async def test_draining_worker_without_another_may_finish(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        exchange.worker.state = WorkerState.DRAINING
        await exchange.worker.beat()
        await exchange.answer(world.tokens)

    worker = await world.add_worker("w1", script)
    assert (await streamed(world))[0] == ANSWER
    assert len(worker.received) == 1


async def test_draining_worker_may_finish_when_the_others_are_full(world: World) -> None:
    may_finish = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:3])
        exchange.worker.state = WorkerState.DRAINING
        await exchange.worker.beat()
        await may_finish.wait()
        await exchange.tokens(3, world.tokens[3:])
        await exchange.finished(len(world.tokens))

    first = await world.add_worker("w1", script)
    asking = asyncio.create_task(streamed(world))
    await world.until(lambda: first.received)
    full = await world.add_worker("w2", Exchange.busy)
    full.num_running = 8
    await full.beat()
    await world.until(lambda: world.gateway.fleet.is_draining(first.worker_id))
    # Longer than the gateway takes to look at a worker whose events it awaits.
    await asyncio.sleep(3 * WAITS.poll_ms / 1000)
    assert not full.received
    may_finish.set()
    assert (await asking)[0] == ANSWER


async def test_answer_that_was_begun_ends_when_no_room_comes(world: World) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if await relay.begin(exchange):
            exchange.worker.die()
        else:
            await exchange.busy()

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    async with asyncio.timeout(10):
        _, data = await streamed(world)
    assert json.loads(data[-1])["error"]["code"] == "worker_lost"
    # By time, and each of the two once in a round: the dead one counts as alive until its heartbeats are missed.
    num_rounds = 1 + HEARTBEAT_TIMEOUT_MS / WAITS.poll_ms
    assert 5 < len(relay.exchanges) <= 2 * num_rounds


@pytest.mark.parametrize("fault", ["gap", "stall", "lost_end", "cancelled_unasked", "undecodable", "given_up"])
async def test_lost_messages_are_noticed_and_repaired(world: World, fault: str) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if not await relay.begin(exchange):
            await exchange.answer(world.tokens)
        elif fault == "gap":
            await exchange.tokens(9, world.tokens[9:])
        elif fault == "lost_end":
            await exchange.finished(len(world.tokens))
        elif fault == "cancelled_unasked":
            await exchange.finished(7, FinishReason.CANCELLED)
        elif fault == "given_up":
            await exchange.failed(WorkerLost(1))
        elif fault == "undecodable":
            await exchange.send("noise")  # type: ignore[arg-type]

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    text, data = await streamed(world)
    assert (text, data[-1]) == (ANSWER, "[DONE]")
    relay.check_second()


async def test_repeated_chunks_are_shown_once(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:5])
        await exchange.tokens(0, world.tokens[:5])
        await exchange.tokens(3, world.tokens[3:])
        await exchange.finished(len(world.tokens))

    await world.add_worker("w1", script)
    assert (await streamed(world))[0] == ANSWER


async def test_end_that_the_delivered_tokens_prove_needs_no_other_worker(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(0, world.tokens[:4])
        exchange.worker.epoch += 1
        exchange.worker.die()
        await exchange.worker.beat()

    await world.add_worker("w1", script)
    response = await world.http.post(CHAT, json=world.body(max_tokens=4), headers=world.key())
    assert response.status_code == 200
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_busy_worker_is_followed_by_the_next(world: World) -> None:
    asked: list[FakeWorker] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.worker)
        if len(asked) < 3:
            await exchange.busy()
        else:
            await exchange.answer(world.tokens)

    for name in ("w1", "w2", "w3"):
        await world.add_worker(name, script)
    assert (await streamed(world))[0] == ANSWER
    assert len({worker.worker_id for worker in asked}) == 3


async def test_all_busy_is_an_overload_with_a_delay(world: World) -> None:
    await world.add_worker("w1", Exchange.busy)
    await world.add_worker("w2", Exchange.busy)
    response = await world.http.post(CHAT, json=world.body(stream=True), headers=world.key())
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1


async def test_answer_that_was_begun_waits_for_a_busy_worker(world: World) -> None:
    relay = Relay(world)

    async def script(exchange: Exchange) -> None:
        if await relay.begin(exchange):
            exchange.worker.die()
        elif len(relay.exchanges) < 4:
            await exchange.busy()
        else:
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    assert (await streamed(world))[0] == ANSWER
    relay.check_second()


async def test_failed_load_is_tried_on_another_worker(world: World) -> None:
    asked: list[str] = []

    async def script(exchange: Exchange) -> None:
        asked.append(exchange.worker.worker_id)
        if len(asked) == 1:
            await exchange.failed(AdapterUnavailable("disk"))
        else:
            await exchange.answer(world.tokens)

    await world.add_worker("w1", script)
    await world.add_worker("w2", script)
    assert (await streamed(world))[0] == ANSWER
    assert len(set(asked)) == 2


async def test_attempts_are_bounded(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started()
        await exchange.tokens(99, [5])

    workers = [await world.add_worker(f"w{i}", script) for i in range(6)]
    _, data = await streamed(world)
    assert json.loads(data[-1])["error"]["code"] == "worker_lost"
    assert sum(len(worker.received) for worker in workers) == 4


async def test_worker_that_starts_another_revision_is_not_served(world: World) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.started(digest=Digest("sha256:" + "0" * 64))
        await exchange.tokens(0, world.tokens)
        await exchange.finished(len(world.tokens))

    await world.add_worker("w1", script)
    response = await world.http.post(CHAT, json=world.body(), headers=world.key())
    assert response.status_code == 500
    assert "error_id" in response.json()["error"]["fields"]


async def test_worker_that_hears_nothing_any_more_is_noticed_at_once(world: World) -> None:
    worker = await world.add_worker("w1", Exchange.busy)
    # Its heartbeats go on while its subscriptions are gone: the server itself says that nobody listens.
    for subscription in list(world.bus._subscriptions):
        if subscription.subject.startswith("octavo.v1.worker."):
            await subscription.unsubscribe()
            world.bus._subscriptions.remove(subscription)
    await world.bus.settled()
    async with asyncio.timeout(10):
        response = await world.http.post(CHAT, json=world.body(), headers=world.key())
    assert response.json()["error"]["code"] == "worker_lost"
    assert not worker.received
