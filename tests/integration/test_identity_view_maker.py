"""The process that makes the view when it is far behind: the same view, and what happens when it fails."""

import asyncio
import os
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from octavo_identity import projection as projection_module
from octavo_identity.catalogue import Position
from octavo_identity.field_keys import FieldKeys
from octavo_identity.projection import Projection
from octavo_identity.search import Search
from octavo_identity.view_maker import MakerEnded, ViewMaker
from octavo_shared.merkle import Tree
from octavo_shared.tasks import end
from support.identity_rig import Parts, data_keys, key_source, own_nats, parts

NUM_ADAPTERS = 40
SILENT = "import time; time.sleep(600)"


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with own_nats(tmp_path / "nats") as nats:
        yield nats.url


@pytest.fixture
async def one(url: str, tmp_path: Path) -> AsyncIterator[Parts]:
    """Some adapters, and no view of them."""
    async with parts(url, tmp_path / "identity") as made:
        for number in range(NUM_ADAPTERS):
            await made.add_revisions(f"home/a{number:02d}", 1)
        yield made


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events are far already, and a batch is small."""
    monkeypatch.setattr(projection_module, "_FEW_EVENTS", 1)
    monkeypatch.setattr(projection_module, "APPLIED_MAX", 16)


async def made_by(one: Parts, projection: Projection, last: int) -> None:
    """Let the view follow until it is whole."""
    following = asyncio.create_task(projection.follow(one.heads))
    async with asyncio.timeout(30):
        while projection.sequence < last:
            assert not following.done(), following.exception()
            await asyncio.sleep(0.01)
    await end(following)


async def check_is_whole(one: Parts, projection: Projection) -> None:
    """Hold a view against the stream."""
    last = (await one.heads.state()).last_sequence
    tree = Tree()
    for event in await one.heads.read_range(1, last):
        tree.append(event.leaf_hash())
    assert projection.sequence == projection.tree.size == last
    assert projection.tree.root(last) == tree.root(last)
    page = await projection.find(Search(), None, "", 100)
    assert [head.name for head in page.heads] == [f"home/a{number:02d}" for number in range(NUM_ADAPTERS)]


async def test_a_view_that_is_far_behind_is_made_by_a_process_of_its_own(one: Parts, url: str, tmp_path: Path) -> None:
    last = (await one.heads.state()).last_sequence
    file = tmp_path / "far.sqlite"
    copied_here = one.heads.copy_range

    async def copy_range(first: int, until: int) -> list[object]:
        # Only what is near is copied in this process.
        assert until - first < 2, f"{first} to {until} was copied here"
        return list(await copied_here(first, until))

    one.heads.copy_range = copy_range  # type: ignore[method-assign, assignment]
    maker = ViewMaker(file, url, "", key_source(one.ids))
    projection = Projection(file, maker)
    one.keys.fields.forget_all()
    await made_by(one, projection, last)
    await check_is_whole(one, projection)
    # What opened the events there is known here: who asks for the adapters waits for their heads only.
    fields = FieldKeys(data_keys(one.heads._bus, one.ids))
    for number in range(NUM_ADAPTERS):
        adapter_id = one.ids.adapter("home", f"a{number:02d}")
        assert one.keys.fields.get(adapter_id) == await fields.read(adapter_id)
    assert maker._child is None, "it ended when nothing followed any more"
    projection.close()


async def test_the_process_gives_way_within_its_session_and_among_sessions(
    one: Parts, url: str, tmp_path: Path
) -> None:
    state = await one.heads.state()
    maker = ViewMaker(tmp_path / "nice.sqlite", url, "", key_source(one.ids))
    Projection(tmp_path / "nice.sqlite").close()
    try:
        await maker.apply(1, state.last_sequence, Position(state.created, 8))
        assert maker._child is not None
        child = psutil.Process(maker._child.pid)
        assert child.nice() == min(19, os.nice(0) + 10)
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        group = Path(f"/proc/{child.pid}/autogroup")
        if group.exists() and "autogroup" in group.read_text():
            assert group.read_text().split()[-1] == "10"
    finally:
        await maker.rest()


async def test_a_process_that_fails_costs_time_and_nothing_else(one: Parts, url: str, tmp_path: Path) -> None:
    last = (await one.heads.state()).last_sequence
    for number, program in enumerate(["raise SystemExit(3)", SILENT, "print('no frame at all' * 1000)"]):
        file = tmp_path / f"{number}.sqlite"
        projection = Projection(
            file, ViewMaker(file, url, "", key_source(one.ids), [sys.executable, "-c", program], answer_s=1.0)
        )
        await made_by(one, projection, last)
        await check_is_whole(one, projection)
        projection.close()


async def test_a_process_that_is_killed_in_the_middle_is_replaced(one: Parts, url: str, tmp_path: Path) -> None:
    state = await one.heads.state()
    file = tmp_path / "killed.sqlite"
    Projection(file).close()
    maker = ViewMaker(file, url, "", key_source(one.ids))
    assert len((await maker.apply(1, state.last_sequence, Position(state.created, 16, 0))).leaves) == 16
    assert maker._child is not None
    maker._child.kill()
    with pytest.raises(MakerEnded):
        await maker.apply(17, state.last_sequence, Position(state.created, 32, 0))
    assert len((await maker.apply(17, state.last_sequence, Position(state.created, 32, 0))).leaves) == 16
    await maker.rest()
    projection = Projection(file)
    assert projection.sequence == 32
    projection.close()


async def test_a_file_that_is_not_where_it_should_be_is_not_written_to(one: Parts, url: str, tmp_path: Path) -> None:
    state = await one.heads.state()
    file = tmp_path / "elsewhere.sqlite"
    Projection(file).close()
    maker = ViewMaker(file, url, "", key_source(one.ids))
    with pytest.raises(sqlite3.DatabaseError, match="does not go up to"):
        await maker.apply(5, state.last_sequence, Position(state.created, 20, 0))
    await maker.rest()
    projection = Projection(file)
    assert projection.sequence == 0
    projection.close()
