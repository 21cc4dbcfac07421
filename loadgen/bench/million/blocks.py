"""Where the files of a stream of nats-server begin: a block is what the server caches, and drops, as a whole."""

import struct
from pathlib import Path

_HEAD = struct.Struct("<IQ")
"""What the record of a message begins with: its length and its sequence."""


def block_starts(store_dir: Path, stream: str) -> list[int]:
    """Return the first sequence of each block of ``stream``, in order.

    Read from the server's files, whose form is its own affair: raises ``ValueError`` when they do not look as expected.
    """
    (folder,) = store_dir.rglob(f"{stream}/msgs")
    files = sorted(folder.glob("*.blk"), key=lambda file: int(file.stem))
    starts = []
    for file in files:
        with file.open("rb") as block:
            head = block.read(_HEAD.size)
        if len(head) == _HEAD.size:
            starts.append(_HEAD.unpack(head)[1])
    if not starts or starts[0] != 1 or starts != sorted(set(starts)):
        raise ValueError(f"the blocks in {folder} do not begin with sequences that grow from 1")
    return starts
