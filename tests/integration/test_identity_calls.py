"""Asking identity against a real server: slow verbs wait for whoever is at work, and notice when nobody is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
from nats.aio.msg import Msg

from octavo_cli.local_servers import NatsServer
from octavo_shared import beats, identity_calls, subjects
from octavo_shared.bus import Bus, Handler
from octavo_shared.errors import AdapterNotFound, DependencyUnavailable
from octavo_shared.identity_calls import ask_identity
from octavo_shared.messages.adapters import AdapterInfo, Revision
from octavo_shared.messages.importing import ImportReport, Register
from octavo_shared.messages.lifecycle import Branch, Unalias
from octavo_shared.messages.pushing import Commit
from octavo_shared.messages.requests import Credential
from octavo_shared.references import AdapterId, Digest, Fingerprint

SILENT_S = 0.5
BEAT_S = 0.1
WHO = Credential("k", b"s")
BASE = Fingerprint("sha256:" + "c0" * 32)
COMMIT = Commit(credential=WHO, idempotency_key="push", adapter="home/a", upload_id="u", served_base=BASE)
DONE = AdapterInfo(
    "home/a", AdapterId("a"), "owner@home", {}, Revision(1, Digest("d"), BASE, 1, 1, 1, "bf16", "owner@home", 0), (), 1
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beats, "BEAT_INTERVAL_S", BEAT_S)
    monkeypatch.setattr(identity_calls, "SILENT_S", SILENT_S)


@contextlib.asynccontextmanager
async def replica(url: str, verb: str, kind: type[Any], handler: Handler) -> AsyncIterator[None]:
    async with Bus(url, "replica", drain_timeout_s=0.1) as bus:
        await bus.serve(subjects.identity(verb), kind, handler, subjects.IDENTITY_QUEUE)
        yield


class Dying:
    """Takes one request and is never heard of again; the queue group is without it then."""

    def __init__(self) -> None:
        self.taken: list[Msg] = []

    @contextlib.asynccontextmanager
    async def on(self, url: str, verb: str) -> AsyncIterator[None]:
        async with Bus(url, "dying") as bus:

            async def take(message: Msg) -> None:
                self.taken.append(message)
                await subscription.unsubscribe()

            subscription = await bus.subscribe(subjects.identity(verb), take, subjects.IDENTITY_QUEUE)
            yield


async def until_taken(dying: Dying) -> None:
    async with asyncio.timeout(10):
        while not dying.taken:
            await asyncio.sleep(0.01)


async def told(asking: Awaitable[ImportReport]) -> ImportReport | DependencyUnavailable:
    try:
        return await asking
    except DependencyUnavailable as error:
        return error


async def test_one_who_is_at_work_is_waited_for_and_asked_once(nats_server: NatsServer) -> None:
    asked = []

    async def commit(request: Commit) -> AdapterInfo:
        asked.append(request)
        await asyncio.sleep(4 * SILENT_S)
        return DONE

    async with replica(nats_server.url, "commit", Commit, commit), Bus(nats_server.url, "gateway") as bus:
        assert await ask_identity(bus, "commit", COMMIT, AdapterInfo) == DONE
    assert asked == [COMMIT]


@pytest.mark.parametrize("verb", ["commit", "branch"])
async def test_what_a_replica_took_and_died_with_is_given_to_another(nats_server: NatsServer, verb: str) -> None:
    branch = Branch(credential=WHO, idempotency_key="branch", adapter="home/b", source="home/a@1")
    request = COMMIT if verb == "commit" else branch
    asked = []

    async def work(again: Commit | Branch) -> AdapterInfo:
        asked.append(again)
        return DONE

    dying, url = Dying(), nats_server.url
    async with dying.on(url, verb), Bus(url, "gateway") as bus, asyncio.TaskGroup() as group:
        asking = group.create_task(ask_identity(bus, verb, request, AdapterInfo))
        await until_taken(dying)
        async with replica(url, verb, type(request), work), asyncio.timeout(10 * SILENT_S):
            assert await asking == DONE
    assert (len(dying.taken), asked) == (1, [request])


async def test_a_refusal_is_an_answer(nats_server: NatsServer) -> None:
    async def commit(request: Commit) -> AdapterInfo:
        await asyncio.sleep(2 * BEAT_S)
        raise AdapterNotFound

    async with replica(nats_server.url, "commit", Commit, commit), Bus(nats_server.url, "gateway") as bus:
        with pytest.raises(AdapterNotFound):
            await ask_identity(bus, "commit", COMMIT, AdapterInfo)


async def test_what_may_find_all_as_it_wants_is_not_asked_again_and_its_caller_is_told_soon(
    nats_server: NatsServer,
) -> None:
    register = Register(credential=WHO, items=())
    asked = []

    async def work(again: Register) -> ImportReport:
        asked.append(again)
        return ImportReport(())

    dying, url = Dying(), nats_server.url
    async with dying.on(url, "register"), Bus(url, "gateway") as bus, asyncio.TaskGroup() as group:
        asking = group.create_task(told(ask_identity(bus, "register", register, ImportReport)))
        await until_taken(dying)
        async with replica(url, "register", Register, work), asyncio.timeout(10 * SILENT_S):
            assert isinstance(await asking, DependencyUnavailable)
    assert (len(dying.taken), asked) == (1, [])


async def test_where_nobody_serves_a_slow_verb_its_caller_is_told_at_once(nats_server: NatsServer) -> None:
    async with Bus(nats_server.url, "gateway") as bus, asyncio.timeout(SILENT_S):
        with pytest.raises(DependencyUnavailable):
            await ask_identity(bus, "commit", COMMIT, AdapterInfo)


async def test_who_wants_no_beats_gets_the_answer_alone(nats_server: NatsServer) -> None:
    async def unalias(request: Unalias) -> AdapterInfo:
        await asyncio.sleep(3 * BEAT_S)
        return DONE

    request = Unalias(credential=WHO, idempotency_key="u", adapter="home/a", alias="beta")
    async with replica(nats_server.url, "unalias", Unalias, unalias), Bus(nats_server.url, "gateway") as bus:
        assert await ask_identity(bus, "unalias", request, AdapterInfo) == DONE
