"""The load generator on the bus, against a small gateway written by hand behind a real nats-server."""

import asyncio

from nats.aio.msg import Msg

from octavo_cli.local_servers import NatsServer
from octavo_loadgen.client import open_client
from octavo_loadgen.driver import drive
from octavo_loadgen.scenario import Adapter, Load, Popularity, PopularityKind, Prompt, Scenario, Transport
from octavo_loadgen.timeline import Timeline
from octavo_loadgen.workload import arrivals_of, targets_of
from octavo_shared import subjects
from octavo_shared.bus import Bus

TEXT = b'{"choices":[{"delta":{"content":"a"},"finish_reason":null}],"usage":null}'
FINISH = b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":null}'
USAGE = b'{"choices":[],"usage":{"completion_tokens":2}}'
REFUSED = b'{"error":{"code":"unauthenticated"}}'
FINAL = {"octavo-final": "1"}


async def run(url: str, key: str = "k") -> list[Timeline]:
    scenario = Scenario(
        name="t",
        load=Load(rate_per_s=40.0, duration_s=0.5, deadline_s=10.0),
        adapters=(Adapter(model="t/a", key=key),),
        prompts=(Prompt(text="hello"),),
        popularity=Popularity(kind=PopularityKind.IDENTICAL),
        transport=Transport.NATS,
        nats_url=url,
        seed=3,
    )
    targets = targets_of(scenario.adapters, {})
    async with open_client(scenario) as client:
        timelines = (await drive(arrivals_of(scenario, targets), client, scenario.load, asyncio.Event())).timelines
    assert len(timelines) > 5
    return timelines


async def test_chunks_on_the_bus_are_measured_like_those_of_http(nats_server: NatsServer) -> None:
    async with Bus(nats_server.url, "gateway by hand") as bus:

        async def answer(message: Msg) -> None:
            if (message.headers or {}).get("Authorization") != "Bearer k":
                await bus.client.publish(message.reply, REFUSED, headers=FINAL)
                return
            await bus.client.publish(message.reply, TEXT, headers={"octavo-tier": "warm"})
            for data in (TEXT, FINISH):
                await bus.client.publish(message.reply, data)
            await bus.client.publish(message.reply, USAGE, headers=FINAL)

        await bus.subscribe(subjects.GENERATE, answer, subjects.GATEWAY_QUEUE)
        timelines = await run(nats_server.url)
        assert all(timeline.is_complete for timeline in timelines)
        assert {(timeline.tier, timeline.num_tokens, len(timeline.text_ms)) for timeline in timelines} == {
            ("warm", 2, 2)
        }
        refused = await run(nats_server.url, key="other")
        assert {timeline.error for timeline in refused} == {"unauthenticated"}


async def test_subject_that_nobody_serves_is_an_error_at_once(nats_server: NatsServer) -> None:
    assert {timeline.error for timeline in await run(nats_server.url)} == {"no_responders"}
