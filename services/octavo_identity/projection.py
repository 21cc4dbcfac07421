"""A rebuildable view of the registry for listing, sweeping, finding and proving; it never decides who may do what."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from octavo_identity.applying import APPLIED_MAX, Applied, apply_events, copy_events
from octavo_identity.catalogue import Catalogue, Hint, Page, Position
from octavo_identity.heads import HeadStore
from octavo_identity.records import KeyHead
from octavo_identity.search import Search
from octavo_identity.sittings import Counts
from octavo_identity.stream import StreamState
from octavo_identity.view_maker import MakerEnded, ViewMaker
from octavo_shared.clock import wall_ms
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.merkle import HASH_BYTES, Tree
from octavo_shared.messages.privacy import LEASE_MS
from octavo_shared.references import AdapterId, Digest, Fingerprint, TenantId
from octavo_shared.telemetry import log

_POLL_S = 0.25
_CATCH_UP_S = 1.0
_REPAIR_S = 1.0
_NEAR_EVENTS = 4_096
"""So many are read within seconds."""
_FEW_EVENTS = 256
"""So many are taken over here and now. More at once come from an import, or from a view that is far behind."""
_MAKER_IDLE_S = 30.0
"""Many imports come close behind one another."""
_GROWN_TOGETHER = 256
"""Half a millisecond of hashing, between which the loop does other things."""
_READ_TOGETHER = 4_096
"""Leaf hashes out of the file: some milliseconds on a thread."""
_REPORT_EVERY = 16 * APPLIED_MAX
_FORGET_AFTER_S = LEASE_MS / 1000 - 60
"""As workers do, keys of what may have been erased meanwhile are kept for less than the lease."""
_VIEW = "the view of the registry"
_ERASURES_MAX = 100

T = TypeVar("T")


class Projection:
    """Follows the stream event by event; ``sequence`` is the last one applied.

    ``tree`` has a leaf for each of them, or for none until it is read from the file; its root at any size is a claim
    about the stream that the signed checkpoints hold it to.

    ``is_caught_up`` says that all of the stream has been in it once: before, it lacks what it has not come to yet.
    """

    def __init__(self, path: Path, maker: ViewMaker | None = None) -> None:
        """With a ``maker`` of the same file, whatever is far behind is left to it."""
        self._catalogue = Catalogue(path)
        self._maker = maker
        self._position = self._catalogue.position()
        self.tree = Tree()
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="projection-write")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="projection-read")
        self.is_caught_up = False
        self._is_damaged = False
        self._is_followed = False
        self._followed_s = 0.0
        self._wanted = 0
        self._nudge = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._growing: asyncio.Task[None] | None = None

    @property
    def sequence(self) -> int:
        return self._position.sequence

    @property
    def created(self) -> str | None:
        """When the stream was created that all this is from, as its leader says it."""
        return self._position.created

    @property
    def begun_s(self) -> float:
        """When it last began again because the stream was another one or had become shorter; seconds since 1970."""
        return self._position.begun_ms / 1000

    def begin(self) -> None:
        """Read what the file has of the ledger's tree, while there may be no stream to follow yet."""
        self._growing = asyncio.create_task(self._grow_from_file(), name="tree")

    async def follow(self, heads: HeadStore) -> None:
        """Apply events for ever; an absent JetStream is waited for, a damaged file is made anew."""
        self._is_followed = True
        self._followed_s = asyncio.get_running_loop().time()
        try:
            await self._follow(heads)
        finally:
            self._is_followed = False
            if self._maker is not None:
                await self._maker.rest()

    async def _follow(self, heads: HeadStore) -> None:
        while True:
            is_behind = False
            try:
                if self._is_damaged:
                    await self._empty(Position(begun_ms=self._position.begun_ms))
                    self._is_damaged = False
                if self.tree.size < self.sequence:
                    growing, self._growing = self._growing, None
                    await (growing or self._grow_from_file())
                is_behind = await self._catch_up(heads)
                self._followed_s = asyncio.get_running_loop().time()
            except DependencyUnavailable as error:
                log.debug("projection_waits", detail=error.message)
                if asyncio.get_running_loop().time() - self._followed_s > _FORGET_AFTER_S:
                    # Whatever was erased meanwhile is not heard of.
                    heads.forget_all()
            except (sqlite3.DatabaseError, OSError) as error:
                log.warning("projection_damaged", detail=str(error))
                self.is_caught_up, self._is_damaged = False, True
                await asyncio.sleep(_REPAIR_S)
            if not is_behind and not self._is_damaged:
                await self._wait()

    async def _catch_up(self, heads: HeadStore) -> bool:
        """Apply a batch of new events; tells whether there are more."""
        state = await heads.state()
        if state.created != self._position.created:
            await self._begin_again(state, "it was made from another stream")
        elif state.last_sequence < self.sequence:
            await self._begin_again(state, "the stream has lost events that were in it")
        last, first = state.last_sequence, self.sequence + 1
        until = min(last, self.sequence + APPLIED_MAX)
        if until >= first:
            position = Position(state.created, until, self._position.begun_ms)
            leaves = await self._apply(heads, last, position)
            # Those are there already that a follower had come to when it was cancelled here.
            await _grow(self.tree, leaves[self.tree.size - self.sequence :])
            self._position = position
        elif self._maker is not None:
            await self._maker.rest(_MAKER_IDLE_S)
        if until < last and until % _REPORT_EVERY < APPLIED_MAX:
            log.info("projection_advanced", sequence=until, last=last)
        self.is_caught_up = self.is_caught_up or until == last
        async with self._advanced:
            self._advanced.notify_all()
        return until < last

    async def _apply(self, heads: HeadStore, last: int, position: Position) -> Sequence[bytes]:
        """Take over what is in the stream up to ``position``, and return the leaf hashes."""
        applied = await self._applied(heads, last, position)
        await heads.keep(applied.keys)
        # An erasure comes behind whatever its adapter's key opened, so that no key outlives it here.
        for adapter_id in applied.erased:
            heads.forget(adapter_id)
        return applied.leaves

    async def _applied(self, heads: HeadStore, last: int, position: Position) -> Applied:
        first = self.sequence + 1
        if self._maker is not None and last - first >= _FEW_EVENTS:
            try:
                return await self._maker.apply(first, last, position)
            except MakerEnded as ended:
                log.warning("view_maker_ended", reason=str(ended))
                # Here it is slow for whoever asks meanwhile, but it comes to its end.
                self._maker = None
        copied = await copy_events(heads, first, position.sequence)
        return await self._write(partial(apply_events, self._catalogue, copied, position))

    async def _begin_again(self, state: StreamState, reason: str) -> None:
        begun_ms = self._position.begun_ms
        if self._position.created is not None:
            log.warning("projection_rebuilt", reason=reason)
            begun_ms = wall_ms()
        self._wanted = 0
        await self._empty(Position(state.created, 0, begun_ms))

    async def _grow_from_file(self) -> None:
        """Grow the tree from the leaf hashes in the file, as far as they go; raises when some are missing."""
        tree = Tree()
        while tree.size < self.sequence:
            read = partial(self._catalogue.leaf_hashes, _READ_TOGETHER, tree.size)
            leaves = await asyncio.get_running_loop().run_in_executor(self._reading, read)
            if not leaves or any(len(leaf) != HASH_BYTES for leaf in leaves):
                raise sqlite3.DatabaseError("it lacks leaves of the ledger")
            await _grow(tree, leaves)
        self.tree = tree

    def rebuild(self, reason: str) -> None:
        """Make everything anew from the stream: for whoever has found that something in it is wrong."""
        log.warning("projection_damaged", detail=reason)
        self.is_caught_up, self._is_damaged = False, True
        self._nudge.set()

    async def _empty(self, position: Position) -> None:
        self.is_caught_up = False
        self.tree = Tree()
        if self._maker is not None:
            # It has the file open that is deleted now.
            await self._maker.rest()
        await self._write(lambda: self._catalogue.begin_again(position))
        self._position = position

    async def _write(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, work)

    async def _read(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, work)
        except sqlite3.DatabaseError as error:
            self.rebuild(str(error))
            raise DependencyUnavailable(_VIEW) from error

    async def change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do ``work`` on the file in one transaction, between batches of events; raises ``sqlite3.DatabaseError``."""
        return await self._write(lambda: self._catalogue.change(work))

    async def look(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return what ``work`` reads from the file, all of it as it was at one moment."""
        return await self._read(lambda: self._catalogue.look(work))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_S):
                await self._nudge.wait()
        except TimeoutError:
            return
        self._nudge.clear()

    def expect(self, sequence: int) -> None:
        """Note that this process wrote ``sequence``, so that its next reader waits for it."""
        self._wanted = max(self._wanted, sequence)
        self._nudge.set()

    async def read_own_writes(self) -> None:
        """Wait until the view is whole and what this process wrote is in it, one second at most.

        Raises ``DependencyUnavailable``: a listing that lacks something is not to be told from one that is whole.
        """
        try:
            async with asyncio.timeout(_CATCH_UP_S), self._advanced:
                await self._advanced.wait_for(lambda: self.is_caught_up and self.sequence >= self._wanted)
        except TimeoutError:
            log.warning("projection_behind", sequence=self.sequence, wanted=self._wanted)
            raise DependencyUnavailable(_VIEW) from None

    async def find(self, search: Search, key: KeyHead | None, after: str, num_max: int) -> Page:
        """Return heads of adapters that match, by name, after ``after``.

        They are those that ``key`` owned or was granted when they were seen; without a key they are anybody's.
        """
        reader = (key.principal, key.tenant) if key is not None else None
        return await self._read(lambda: self._catalogue.find(search, reader, after, num_max))

    async def count_bases(self, tenant_id: TenantId | None) -> dict[Fingerprint, Counts]:
        """Return what sits on each base in a tenant (None: in all of them)."""
        return await self._read(lambda: self._catalogue.count_bases(tenant_id))

    async def find_keys(self, principal: str, after: str, num_max: int) -> list[str]:
        """Return ids of keys of ``principal`` (``*@tenant``: of all of the tenant) after ``after``, in order."""
        return await self._read(lambda: self._catalogue.find_keys(principal, after, num_max))

    async def find_revision(self, adapter_id: AdapterId, number: int | None, digest: Digest | None) -> Hint:
        """Return where a revision should be found in the stream; whoever uses it looks there."""
        try:
            return await self._read(lambda: self._catalogue.find_revision(adapter_id, number, digest))
        except DependencyUnavailable:
            return Hint(None, 0)

    async def open_erasures(self) -> list[tuple[TenantId, AdapterId]]:
        """Return tenant and id of some adapters whose erasure was begun and, as far as is known here, not finished."""
        return await self._read(lambda: self._catalogue.open_erasures(_ERASURES_MAX))

    async def reach(self, sequence: int) -> bool:
        """Wait until all up to ``sequence`` is in the view; tells whether it is, at once where it is far from it.

        Raises ``DependencyUnavailable`` when it is near, and still not there after a second.
        """
        if self.sequence >= sequence:
            return True
        if not self._is_followed or sequence - self.sequence > _NEAR_EVENTS:
            return False
        self._nudge.set()
        try:
            async with asyncio.timeout(_CATCH_UP_S), self._advanced:
                await self._advanced.wait_for(lambda: self.sequence >= sequence)
        except TimeoutError:
            raise DependencyUnavailable(_VIEW) from None
        return True

    async def find_write(self, adapter_id: AdapterId, mark: str) -> int | None:
        """Return the sequence of the last event whose head remembered the write; whoever uses it looks there."""
        try:
            return await self._read(lambda: self._catalogue.find_write(adapter_id, mark))
        except DependencyUnavailable:
            return None

    async def unnamed_packs(self, object_keys: Iterable[str]) -> list[str]:
        """Return those of ``object_keys`` that are packs which no revision seen so far names."""
        return await self._read(lambda: self._catalogue.unnamed_packs(object_keys))

    async def kept(self, name: str) -> bytes | None:
        """Return what was kept last under ``name`` in the view's file."""
        return await self._read(lambda: self._catalogue.kept(name))

    async def keep(self, name: str, value: bytes) -> None:
        """Keep ``value`` in the view's file until that is made anew."""
        try:
            await self._write(lambda: self._catalogue.keep(name, value))
        except sqlite3.DatabaseError as error:
            # It may be locked while the view is made anew; damage is found by those who read.
            raise DependencyUnavailable(_VIEW) from error

    def close(self) -> None:
        """Wait for what runs on the threads, a few milliseconds of work, and close the file."""
        if self._growing is not None:
            self._growing.cancel()
        for threads in (self._writing, self._reading):
            threads.shutdown(cancel_futures=True)
        self._catalogue.close()


async def _grow(tree: Tree, leaves: Sequence[bytes]) -> None:
    for begin in range(0, len(leaves), _GROWN_TOGETHER):
        tree.extend(leaves[begin : begin + _GROWN_TOGETHER])
        await asyncio.sleep(0)
