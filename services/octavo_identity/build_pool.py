"""Builds packs in processes of their own, so that no upload can take this one's memory, time or secrets."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from octavo_identity.build_process import ANSWER_BYTES_MAX, READY, Answer, Order
from octavo_identity.building import Built, read_back
from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused, DependencyUnavailable, from_refusal
from octavo_shared.manifest import BaseManifest
from octavo_shared.telemetry import log

BUILD_S_MAX = 60.0
"""On the clock. The child's own limit is on the time that it computes; this one ends a child that waits for ever."""
_START_S_MAX = 30.0
_WHO = "the process that looks at uploads"
_PROGRAM = (sys.executable, "-P", "-m", "octavo_identity.build_process")
_KEPT_ENVIRONMENT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class BuildPool:
    """Children that wait for work. One is started when none waits, so there are as many as callers at once."""

    def __init__(self, program: Sequence[str] = _PROGRAM, build_s_max: float = BUILD_S_MAX) -> None:
        self._program = program
        self._build_s_max = build_s_max
        self._lock = threading.Lock()
        self._waiting: list[_Child] = []
        self._all: set[_Child] = set()
        self._is_closed = False

    def build(self, config: bytes, weights: bytes, base: BaseManifest, dtype: str | None) -> Built:
        """Return the pack of an upload; blocks. Raises ``AdapterRefused``, also with the rule ``limits``.

        The child is never trusted: what it wrote is copied, and header and digest are taken of the copy.
        """
        with _file("order") as order, _file("weights") as given, _file("pack") as pack_file:
            _write(order, msgspec.msgpack.encode(Order(config, base, dtype)))
            _write(given, weights)
            child = self._take()
            try:
                answer = child.ask((order, given, pack_file), self._build_s_max)
            except _Ended as ended:
                self._drop(child)
                log.error("build_ended", reason=str(ended), weights_bytes=len(weights))
                raise AdapterRefused("limits", "looking at it took more time or memory than it may") from None
            except BaseException:
                self._drop(child)
                raise
            self._give_back(child)
            if answer.refusal is not None:
                if answer.bug:
                    log.error("build_failed", error_id=answer.refusal.fields.get("error_id"), detail=answer.bug)
                raise from_refusal(answer.refusal)
            built = read_back(os.pread(pack_file, os.fstat(pack_file).st_size, 0))
        if built.header.base != base.fingerprint:
            raise AdapterRefused("format", "the pack is for another base")
        return built

    def close(self) -> None:
        """End the children, also those at work; nobody waits for their answers any more."""
        with self._lock:
            self._is_closed = True
            ending, self._all = self._all, set()
            self._waiting.clear()
        for child in ending:
            child.kill()

    def _take(self) -> "_Child":
        while True:
            with self._lock:
                if self._is_closed:
                    raise DependencyUnavailable(_WHO)
                child = self._waiting.pop() if self._waiting else None
            if child is None:
                child = _Child(self._program)
                with self._lock:
                    self._all.add(child)
                    is_closed = self._is_closed
                if is_closed:
                    child.kill()
                return child
            if child.is_alive():
                return child
            self._drop(child)

    def _give_back(self, child: "_Child") -> None:
        with self._lock:
            if child in self._all:
                self._waiting.append(child)

    def _drop(self, child: "_Child") -> None:
        with self._lock:
            self._all.discard(child)
        child.kill()


class _Ended(Exception):
    """The child ended, or was too slow, before it answered."""


class _Child:
    def __init__(self, program: Sequence[str]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._socket = ours
        try:
            ours.settimeout(_START_S_MAX)
            if ours.recv(len(READY)) != READY:
                raise DependencyUnavailable(_WHO)
        except OSError as error:
            self.kill()
            raise DependencyUnavailable(_WHO) from error
        except BaseException:
            self.kill()
            raise

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, files: tuple[int, int, int], timeout_s: float) -> Answer:
        try:
            self._socket.settimeout(timeout_s)
            socket.send_fds(self._socket, [b"build"], files)
            data = self._socket.recv(ANSWER_BYTES_MAX)
            return decoding.from_msgpack(data, Answer)
        except TimeoutError:
            raise _Ended("too slow") from None
        except OSError as error:
            raise _Ended(type(error).__name__) from None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise _Ended("no answer") from None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()


@contextmanager
def _file(name: str) -> Iterator[int]:
    """A file in memory; gone when it is closed here and in the child."""
    handle = os.memfd_create(name)
    try:
        yield handle
    finally:
        os.close(handle)


def _write(file: int, data: bytes) -> None:
    with open(file, "wb", closefd=False) as writing:
        writing.write(data)
