"""The two ways in: HTTP with server-sent events, and the NATS subject. Both write a timeline and never raise."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import httpx
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from octavo_loadgen.answer import EventReader, body_of, error_code_of, note_chunk
from octavo_loadgen.scenario import Load, Sampling, Scenario, Transport
from octavo_loadgen.timeline import CONNECTION, DEADLINE, TRUNCATED, UNDECODABLE, Timeline
from octavo_loadgen.workload import Arrival
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.credentials import read_credentials
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.permissions import BusRole

_CONNECT_TIMEOUT_S = 10.0
_ERROR_BYTES_MAX = 64 * 1024
_NO_RESPONDERS = "503"


class Client(Protocol):
    async def send(self, arrival: Arrival, timeline: Timeline) -> None:
        """Make the request and write what happens into ``timeline``, which has ended when this returns."""
        ...


class HttpClient:
    """Speaks to the gateway over HTTP. One connection per request in flight, kept for the next one."""

    def __init__(self, http: httpx.AsyncClient, sampling: Sampling) -> None:
        self._http = http
        self._sampling = sampling

    async def send(self, arrival: Arrival, timeline: Timeline) -> None:
        timeline.sent_ms = now_ms()
        try:
            async with self._http.stream(
                "POST",
                "/v1/chat/completions",
                content=body_of(arrival, self._sampling),
                headers={"authorization": f"Bearer {arrival.target.key}", "content-type": "application/json"},
            ) as response:
                timeline.tier = response.headers.get("octavo-tier")
                if response.status_code == 200:
                    await self._read(response, timeline)
                else:
                    timeline.fail(await _error_code(response), now_ms())
        except httpx.ConnectTimeout:
            timeline.fail(CONNECTION, now_ms())
        except httpx.TimeoutException:
            timeline.fail(DEADLINE, now_ms())
        except httpx.HTTPError:
            timeline.fail(CONNECTION, now_ms())
        timeline.fail(TRUNCATED, now_ms())

    async def _read(self, response: httpx.Response, timeline: Timeline) -> None:
        reader = EventReader()
        # It is read past its last event up to the end of the body, so that the connection can be used again.
        async for received in response.aiter_raw():
            at_ms = now_ms()
            try:
                events = reader.feed(received)
            except ValueError:
                timeline.fail(UNDECODABLE, at_ms)
                return
            for data in events:
                if data == b"[DONE]":
                    timeline.complete(at_ms)
                elif timeline.ended_ms is None:
                    note_chunk(timeline, data, at_ms)


async def _error_code(response: httpx.Response) -> str:
    body = b""
    async for received in response.aiter_raw():
        body += received
        if len(body) > _ERROR_BYTES_MAX:
            break
    return error_code_of(body, response.status_code)


class NatsClient:
    """Publishes to the public subject and reads the chunks from an inbox of this request's own."""

    def __init__(self, bus: Bus, sampling: Sampling, deadline_s: float) -> None:
        self._bus = bus
        self._sampling = sampling
        self._deadline_s = deadline_s

    async def send(self, arrival: Arrival, timeline: Timeline) -> None:
        try:
            if not self._bus.is_connected:
                # The client would buffer the request and send it late.
                raise DependencyUnavailable("NATS")
            async with self._bus.inbox() as (reply, answers):
                timeline.sent_ms = now_ms()
                await self._bus.client.publish(
                    subjects.GENERATE,
                    body_of(arrival, self._sampling),
                    reply=reply,
                    headers={"Authorization": f"Bearer {arrival.target.key}"},
                )
                while timeline.ended_ms is None:
                    _note_message(timeline, await answers.next_msg(timeout=self._deadline_s))
        except TimeoutError:
            timeline.fail(DEADLINE, now_ms())
        except (DependencyUnavailable, NatsError, OSError):
            timeline.fail(CONNECTION, now_ms())


def _note_message(timeline: Timeline, message: Msg) -> None:
    at_ms = now_ms()
    headers = {name.lower(): value for name, value in (message.headers or {}).items()}
    if headers.get("status") == _NO_RESPONDERS and not message.data:
        timeline.fail("no_responders", at_ms)
        return
    timeline.tier = timeline.tier or headers.get("octavo-tier")
    note_chunk(timeline, message.data, at_ms)
    if "octavo-final" in headers:
        timeline.complete(at_ms)


@contextlib.asynccontextmanager
async def open_client(scenario: Scenario) -> AsyncIterator[Client]:
    """Yield the client that the scenario's transport names.

    Raises ``DependencyUnavailable`` when NATS is not there, ``ConfigError`` when the seed file is of no use.
    """
    load = scenario.load
    if scenario.transport is Transport.NATS:
        credentials = read_credentials(BusRole.CLIENT, scenario.nats_seed_file)
        async with Bus(
            scenario.nats_url, "octavo-loadgen", connect_timeout_s=_CONNECT_TIMEOUT_S, credentials=credentials
        ) as bus:
            yield NatsClient(bus, scenario.sampling, load.deadline_s)
    else:
        async with _http(scenario.gateway_url, load) as http:
            yield HttpClient(http, scenario.sampling)


def _http(url: str, load: Load) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url,
        # As many connections as requests may be in flight: no request waits in the pool, unseen.
        limits=httpx.Limits(
            max_connections=load.in_flight_max,
            max_keepalive_connections=load.in_flight_max,
            # Below the usual 5 s of servers, so that none is closed by the other side just as it is used again.
            keepalive_expiry=2.0,
        ),
        timeout=httpx.Timeout(load.deadline_s, connect=min(_CONNECT_TIMEOUT_S, load.deadline_s)),
        headers={"accept": "text/event-stream", "accept-encoding": "identity"},
        # A proxy that the environment names would be measured too.
        trust_env=False,
    )


async def send_within(client: Client, arrival: Arrival, timeline: Timeline, deadline_s: float) -> None:
    """Send; what has not ended ``deadline_s`` after its scheduled arrival fails with ``client_deadline``."""
    left_s = deadline_s - (now_ms() - timeline.scheduled_ms) / 1e3
    try:
        async with asyncio.timeout(left_s):
            await client.send(arrival, timeline)
    except TimeoutError:
        timeline.fail(DEADLINE, now_ms())
