"""What is another's and what is not there take the same: the same reads, and the same time from outside."""

import contextlib
import json
import math
import statistics
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from octavo_identity.desk import Desk
from octavo_identity.projection import Projection
from octavo_identity.records import WRITES_IN_HEAD_MAX
from octavo_identity.stream import Stream
from octavo_shared import subjects
from octavo_shared.config import StoreSettings
from octavo_shared.errors import OctavoError
from octavo_shared.messages.importing import ImportReport
from support.access_gateways import Front, front_of
from support.access_routes import IMPORT, MESSAGES, NAMES_AN_ADAPTER, asked, presented
from support.access_table import REQUESTS, Cell, rows
from support.access_world import AccessWorld, Who, access_world
from support.fakes import Exchange

ABSENT = "home/nothing"
NUM_PAIRS = 60
OURS = (*NAMES_AN_ADAPTER, IMPORT)


async def answering(exchange: Exchange) -> None:
    await exchange.answer([65, 66])


@pytest.fixture
async def world(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[AccessWorld]:
    async with access_world(store_settings, tmp_path) as made:
        # So many writes that its head has forgotten some, which only its own people may find out.
        adapter = made.people[Who.OTHER].adapter
        for number in range(WRITES_IN_HEAD_MAX):
            await made.alice.ask("tag", adapter=adapter, **{"add" if number % 2 == 0 else "remove": ("work",)})
        yield made


@pytest.fixture
async def front(world: AccessWorld, store_settings: StoreSettings) -> AsyncIterator[Front]:
    async with front_of(world, store_settings, answering, 1) as made:
        yield made


class Reads:
    """Which messages and which rows of the view each request to identity read, in order; by the request, as side tasks
    read, too.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[list[str]] = []
        current: ContextVar[list[str] | None] = ContextVar("reads", default=None)
        authenticate = Desk.authenticate

        async def begin(desk: Desk, credential: Any) -> Any:
            current.set(reads := [])
            self.requests.append(reads)
            return await authenticate(desk, credential)

        def noting(kind: type, name: str, said: Callable[..., str]) -> None:
            inner = getattr(kind, name)

            async def note(own: Any, *args: Any, **kwargs: Any) -> Any:
                if (reads := current.get()) is not None:
                    reads.append(f"{name} {said(own)}")
                return await inner(own, *args, **kwargs)

            monkeypatch.setattr(kind, name, note)

        monkeypatch.setattr(Desk, "authenticate", begin)
        for name in ("_get", "state", "append"):
            noting(Stream, name, lambda own: str(own._name))
        for name in ("read_own_writes", "find", "find_keys", "find_revision", "find_write", "reach", "look"):
            noting(Projection, name, lambda own: "")

    def taken(self) -> list[list[str]]:
        """Return what was read since the last call."""
        taken, self.requests = self.requests, []
        return taken


async def test_every_verb_reads_the_same_for_what_is_anothers_and_what_is_not_there(
    world: AccessWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, other = Reads(monkeypatch), world.people[Who.OTHER]

    async def read_by(row: str, adapter: str) -> list[list[str]]:
        fields = await REQUESTS[row](Cell(world, other, "404", adapter))
        reads.taken()
        with contextlib.suppress(OctavoError):
            told = await other.client.ask(row.split()[0], **fields)
            assert isinstance(told, ImportReport), f"{row} is answered"
        return reads.taken()

    wrong = []
    for row, cells in rows().items():
        if cells[Who.OTHER] == "404":
            # The first time a key that opens the head may be read; from then on it is known that there is one, or none.
            for name in (other.adapter, ABSENT):
                await read_by(row, name)
            foreign, absent = await read_by(row, other.adapter), await read_by(row, ABSENT)
            if foreign != absent or not any(foreign):
                wrong.append(f"{row}: {foreign} for another's, {absent} for what is not there")
    assert wrong == []


async def test_every_route_asks_identity_the_same_for_what_is_anothers_and_what_is_not_there(
    world: AccessWorld, front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, other = Reads(monkeypatch), world.people[Who.OTHER]
    key = presented(other)

    async def over_http(route: str, adapter: str) -> list[list[str]]:
        reads.taken()
        await asked(front.http[0], route, adapter, key)
        return reads.taken()

    async def over_nats(_: str, adapter: str) -> list[list[str]]:
        reads.taken()
        await generate(world, adapter, key)
        return reads.taken()

    wrong = []
    for ask, route in [*((over_http, route) for route in OURS), (over_nats, "octavo.v1.generate")]:
        for name in (other.adapter, ABSENT):
            await ask(route, name)
        foreign, absent = await ask(route, other.adapter), await ask(route, ABSENT)
        if foreign != absent or not any(foreign):
            wrong.append(f"{route}: {foreign} for another's, {absent} for what is not there")
    assert wrong == []


async def generate(world: AccessWorld, adapter: str, key: str | None) -> Any:
    body = json.dumps({"model": adapter, "messages": MESSAGES, "stream": False}).encode()
    headers = {"Authorization": f"Bearer {key}"}
    return json.loads((await world.admin.bus.client.request(subjects.GENERATE, body, 5, headers=headers)).data)


async def test_nothing_is_told_by_how_long_it_takes(world: AccessWorld, front: Front) -> None:
    """In turn, each pair under the same load, and what is not there for the first time, as it is asked for."""
    other = world.people[Who.OTHER]
    key = presented(other)

    async def over_http(adapter: str) -> None:
        status, _ = await asked(front.http[0], "POST /v1/chat/completions", adapter, key)
        assert status == 404

    async def over_nats(adapter: str) -> None:
        assert (await generate(world, adapter, key))["error"]["code"] == "adapter_not_found"

    for ask in (over_http, over_nats):
        differences = []
        for number in range(NUM_PAIRS):
            took = {}
            names = [(other.adapter, "foreign"), (f"home/nothing-{ask.__name__[-4:]}{number}", "absent")]
            for name, kind in names if number % 2 else reversed(names):
                began_s = perf_counter()
                await ask(name)
                took[kind] = perf_counter() - began_s
            differences.append(took["foreign"] - took["absent"])
        # 1.25 standard errors of a mean are one of a median, of which four are passed by chance once in 16,000 runs.
        spread_s = statistics.median(abs(one - statistics.median(differences)) for one in differences) * 1.4826
        bound_s = 0.000_2 + 4 * 1.25 * spread_s / math.sqrt(NUM_PAIRS)
        print(f"{ask.__name__}: foreign - absent {statistics.median(differences) * 1e3:.3f} ms, "
              f"bound {bound_s * 1e3:.3f} ms")  # fmt: skip
        assert abs(statistics.median(differences)) < bound_s
