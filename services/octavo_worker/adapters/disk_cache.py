"""The local tier: sealed packs as files, ``<folder>/<adapter id>/<digest in hexadecimal>``, within a byte budget.

Its index lives on the event loop, its files are read and written on threads. The index changes first and at once,
so that it never promises more than the budget; the work on one file follows in that order, one after the other.
Files appear by rename, so a half-written one is never seen; what a crash may still have left of one is found by
its seal and its digest, which every reader checks. A restart finds everything again by scanning.
"""

import asyncio
import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeVar

from octavo_shared.policy import EvictionPolicy
from octavo_shared.references import DIGEST_PATTERN, AdapterId, Digest, PackKey
from octavo_shared.telemetry import log

T = TypeVar("T")

_PREFIX = "sha256:"
_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,128}\Z")
_WORK = ".partial"
_COST_UNKNOWN_MS = 50.0
"""Reload cost assumed for files found by the scan; a small S3 read."""


def _is_safe(key: PackKey) -> bool:
    return _ID_PATTERN.match(key[0]) is not None and DIGEST_PATTERN.match(key[1]) is not None


class DiskCache:
    """Packs on disk. ``scan()`` first; every method belongs to the event loop, its file work to ``threads``."""

    def __init__(self, folder: Path, budget_bytes: int, threads: Executor) -> None:
        self.budget_bytes = budget_bytes
        self._folder = folder
        self._threads = threads
        self._sizes: dict[PackKey, int] = {}
        self._policy = EvictionPolicy[PackKey]()
        self._used_bytes = 0
        # The newest work on each file, and all removals: what still has to happen until the disk agrees.
        self._newest: dict[PackKey, asyncio.Task[Any]] = {}
        self._removals: set[asyncio.Task[None]] = set()

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def __contains__(self, key: PackKey) -> bool:
        return key in self._sizes

    def sizes(self) -> Iterable[tuple[PackKey, int]]:
        """Return every key with its size in bytes."""
        return list(self._sizes.items())

    def path_of(self, key: PackKey) -> Path:
        """Return where the file of ``key`` is or would be; ``key`` must have the form of an id and a digest."""
        assert _is_safe(key), "ids and digests come from identity"
        return self._folder / key[0] / key[1].removeprefix(_PREFIX)

    async def scan(self) -> None:
        """Find what an earlier run left, least recently written first; drop leftovers and what exceeds the budget."""
        found = await self._on_thread(self._walk)
        for key, size_bytes in found:
            self._admit(key, size_bytes, _COST_UNKNOWN_MS)
        self._evict(self._used_bytes - self.budget_bytes)
        if self._removals:
            await asyncio.wait(self._removals)
        log.info("local_tier_scanned", num_packs=len(self._sizes), used_bytes=self._used_bytes)

    async def read(self, key: PackKey) -> bytes | None:
        """Return the file's bytes, not verified, or None when it is not there or cannot be read."""
        if key not in self._sizes:
            return None
        try:
            return await self._in_turn(key, self.path_of(key).read_bytes)
        except OSError as error:
            log.warning("local_pack_unreadable", error=type(error).__name__)
            self._lose(key)
            return None

    async def write(self, key: PackKey, pack: bytes, cost_ms: float) -> bool:
        """Keep ``pack``, evicting others by policy; ``cost_ms`` is what fetching it from S3 took.

        Returns False when it does not fit, has no safe name or cannot be written: the tier is a cache, so a
        full disk costs time later and nothing else.
        """
        if not _is_safe(key):
            return False
        if key in self._sizes:
            self._policy.used(key, self._sizes[key], cost_ms)
            return True
        if len(pack) > self.budget_bytes:
            return False
        # Up to the first await nobody else runs: two writers never see the same room, nor the same victims.
        self._evict(self._used_bytes + len(pack) - self.budget_bytes)
        self._admit(key, len(pack), cost_ms)
        try:
            # After all removals, not only those for this pack: the disk may be as small as the budget.
            await self._in_turn(key, lambda: self._store(self.path_of(key), pack), after=self._removals)
        except OSError as error:
            log.warning("local_pack_not_written", error=type(error).__name__, detail=str(error))
            self._lose(key)
            return False
        return True

    async def drop(self, key: PackKey) -> bool:
        """Remove one file by order; returns once it is gone, and whether it was here."""
        is_here = key in self._sizes
        if is_here:
            self._policy.dropped(key)
            self._remove(key)
        # One that was evicted a moment ago may still lie there.
        if (newest := self._newest.get(key)) is not None:
            await asyncio.wait([newest])
        return is_here

    def _admit(self, key: PackKey, size_bytes: int, cost_ms: float) -> None:
        self._sizes[key] = size_bytes
        self._used_bytes += size_bytes
        self._policy.used(key, size_bytes, cost_ms)

    def _evict(self, needed_bytes: int) -> None:
        for victim in self._policy.choose(needed_bytes):
            self._policy.evicted(victim)
            self._remove(victim)

    def _remove(self, key: PackKey) -> None:
        """Take ``key`` off the index now and its file off the disk in its turn."""
        self._used_bytes -= self._sizes.pop(key)
        path = self.path_of(key)
        removal = self._in_turn(key, lambda: _unlink(path))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    def _lose(self, key: PackKey) -> None:
        """Forget a file that is not there, unless other work on it was asked for meanwhile: that will tell."""
        if key in self._sizes and key not in self._newest:
            self._policy.dropped(key)
            self._used_bytes -= self._sizes.pop(key)

    def _in_turn(self, key: PackKey, work: Callable[[], T], after: Iterable[asyncio.Task[Any]] = ()) -> asyncio.Task[T]:
        """Begin ``work`` on the file of ``key``: on a thread, after all earlier work on it and after ``after``.

        Whoever waits, waits for what was asked for earlier, so nobody waits in a circle.
        """
        earlier = {*after, *({self._newest[key]} if key in self._newest else ())}

        async def run() -> T:
            if earlier:
                await asyncio.wait(earlier)
            return await self._on_thread(work)

        def done(ended: asyncio.Task[T]) -> None:
            if self._newest.get(key) is ended:
                del self._newest[key]

        task = self._newest[key] = asyncio.create_task(run(), name="local file")
        task.add_done_callback(done)
        return task

    def _walk(self) -> list[tuple[PackKey, int]]:
        work = self._folder / _WORK
        work.mkdir(parents=True, exist_ok=True)
        for leftover in work.iterdir():
            leftover.unlink(missing_ok=True)
        found: list[tuple[float, PackKey, int]] = []
        for path in self._folder.glob("*/*"):
            key = (AdapterId(path.parent.name), Digest(_PREFIX + path.name))
            if path.parent != work and _is_safe(key) and path.is_file():
                status = path.stat()
                found.append((status.st_mtime, key, status.st_size))
        return [(key, size_bytes) for _, key, size_bytes in sorted(found)]

    def _store(self, path: Path, pack: bytes) -> None:
        work = self._folder / _WORK
        work.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=work)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pack)
            path.parent.mkdir(parents=True, exist_ok=True)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("local_pack_not_removed", error=type(error).__name__, detail=str(error))
    with contextlib.suppress(OSError):
        path.parent.rmdir()
