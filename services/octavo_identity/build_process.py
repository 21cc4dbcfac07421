"""The child that looks at uploads: no secret, no network, and limits on its time, memory and files.

It speaks to its parent (``build_pool``) over a socket: an order comes with three files in memory, which are the order
itself, the weights, and the one that the pack goes into; the answer says how long the pack is, or why there is none.
"""

import contextlib
import mmap
import os
import resource
import socket
import sys
import traceback
from pathlib import Path

import msgspec

from octavo_identity.building import build
from octavo_shared import decoding
from octavo_shared.errors import AdapterRefused, InternalError, Refusal
from octavo_shared.manifest import BaseManifest

READY = b"ready"
ANSWER_BYTES_MAX = 64 * 1024
CPU_S_MAX = 10
"""For one order, and a second more for every 100 MB of weights."""
_COPIES_MAX = 4
_ROOM_BYTES = 64 * 1024 * 1024
"""Beyond the copies of the weights. More than hostile files take, as a test shows."""
_FILES_MAX = 32


class Order(msgspec.Struct, frozen=True):
    """What to build a pack of; the weights are in a file of their own."""

    config: bytes
    base: BaseManifest
    dtype: str | None


class Answer(msgspec.Struct, frozen=True):
    """``refusal`` says why there is no pack; ``bug`` what went wrong, and where, when that is none of the upload's."""

    pack_bytes: int = 0
    refusal: Refusal | None = None
    bug: str = ""


def main() -> None:
    """Serve orders from the socket whose number is the first argument, until it is closed."""
    # An identity that was killed takes no answer.
    with contextlib.suppress(ConnectionError), socket.socket(fileno=int(sys.argv[1])) as parent:
        for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, _FILES_MAX)):
            resource.setrlimit(limit, (value, value))
        parent.sendall(READY)
        while True:
            message, files, _, _ = socket.recv_fds(parent, 16, 3)
            if not message:
                return
            try:
                answer = _answer(*files)
            finally:
                for file in files:
                    os.close(file)
            parent.sendall(msgspec.msgpack.encode(answer))


def _answer(order_file: int, weights_file: int, pack_file: int) -> Answer:
    num_bytes = os.fstat(weights_file).st_size
    _limit(num_bytes)
    try:
        order = decoding.from_msgpack(_read(order_file), Order)
        pack = build(order.config, _view(weights_file, num_bytes), order.base, order.dtype)
        with open(pack_file, "wb", closefd=False) as file:
            file.write(pack)
        return Answer(len(pack))
    except AdapterRefused as refused:
        return Answer(refusal=refused.refusal())
    except MemoryError:
        return Answer(refusal=AdapterRefused("limits", "looking at it takes more memory than it may").refusal())
    except Exception as error:
        # Its text may hold parts of the upload, which no log may.
        where = traceback.extract_tb(error.__traceback__)[-1]
        bug = f"{type(error).__name__} at {where.filename}:{where.lineno}"
        return Answer(refusal=InternalError().refusal(), bug=bug)


def _limit(weights_bytes: int) -> None:
    """Bound what this order may take, beyond what the process has taken so far."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    _set(resource.RLIMIT_AS, used_bytes + _COPIES_MAX * weights_bytes + _ROOM_BYTES)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_S_MAX + weights_bytes // 100_000_000)


def _set(limit: int, value: int) -> None:
    """Move the soft limit, which each order does anew; whoever set a hard one has the last word."""
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _read(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _view(file: int, num_bytes: int) -> bytes | memoryview:
    return memoryview(mmap.mmap(file, num_bytes, prot=mmap.PROT_READ)) if num_bytes else b""


if __name__ == "__main__":
    main()
