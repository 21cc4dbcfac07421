"""Appends of several writers in one atomic batch."""

import asyncio
from collections.abc import Sequence
from types import TracebackType

import msgspec

from octavo_identity.batching import BATCH_MAX, BatchRefused
from octavo_identity.heads import HeadStore
from octavo_identity.records import RegistryEvent
from octavo_shared.errors import DependencyUnavailable, OctavoError, RevisionConflict


async def append_each(heads: HeadStore, events: Sequence[tuple[str, RegistryEvent]]) -> list[int | OctavoError]:
    """Append events with their subjects, ``BATCH_MAX`` at most, and return of each its sequence, or what is in its way.

    They are one atomic batch, if that can be. Of one that conflicts somewhere, the events are appended one by one.
    """
    if len({subject for subject, _ in events}) == len(events) > 1:
        try:
            return [*await heads.append_all(events)]
        except (RevisionConflict, BatchRefused):
            # Nothing was stored, and whose conflict it was is not known.
            pass
        except DependencyUnavailable as error:
            return [error] * len(events)
    results: list[int | OctavoError] = []
    for subject, event in events:
        try:
            results.append(await heads.append(subject, event))
        except OctavoError as error:
            results.append(error)
    return results


class _Waiting(msgspec.Struct, frozen=True, eq=False):
    subject: str
    event: RegistryEvent
    sequence: asyncio.Future[int]


class Group:
    """Holds what each of ``num_writers`` appends until all of them wait, or are done, and appends it together.

    Each writer is told for itself, as ``HeadStore.append`` would: of a batch that conflicts somewhere, the events are
    appended one by one. So a writer may come again, and then waits for those that still run.
    """

    def __init__(self, heads: HeadStore, num_writers: int) -> None:
        self._heads = heads
        self._num_writers = num_writers
        self._waiting: list[_Waiting] = []
        self._storing: set[asyncio.Task[None]] = set()

    def writer(self) -> "_Writer":
        """Be one of the writers while the block runs."""
        return _Writer(self)

    def leave(self) -> None:
        """Be no writer any more: the others wait for one less."""
        self._num_writers -= 1
        self._store_if_all_wait()

    async def append(self, subject: str, event: RegistryEvent, mark: str = "") -> int:
        """Append ``event`` with those of the others; see ``HeadStore.append``.

        The ``mark`` is only in the event: the server's memory of ids is not for a million of them at once.
        """
        del mark
        one = _Waiting(subject, event, asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._store_if_all_wait()
        try:
            return await one.sequence
        finally:
            if one in self._waiting:
                # The writer was cancelled before anything was sent.
                self._waiting.remove(one)

    def _store_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) < min(self._num_writers, BATCH_MAX):
            return
        taken, self._waiting = self._waiting, []
        task = asyncio.create_task(self._store(taken), name="append a group")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def _store(self, taken: list[_Waiting]) -> None:
        for one, result in zip(
            taken, await append_each(self._heads, [(one.subject, one.event) for one in taken]), strict=True
        ):
            _tell(one, result)


class _Writer:
    """A class and no generator: every item of an import comes through it, and this is a few microseconds less."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._group.leave()


def _tell(one: _Waiting, result: int | OctavoError) -> None:
    if one.sequence.done():
        return
    if isinstance(result, int):
        one.sequence.set_result(result)
    else:
        one.sequence.set_exception(result)
