"""Asking over plain NATS, as any program with a NATS client could; nothing of ours is needed for it."""

import json
from pathlib import Path

import nats

from octavo_shared.permissions import BusRole, inbox_prefix
from octavo_shared.subjects import GENERATE

_CHUNK_TIMEOUT_S = 60.0
_CHUNKS_MAX = 10_000


async def ask_over_nats(url: str, seed_file: Path, key: str, body: dict[str, object]) -> tuple[str, int]:
    """Publish ``body`` as a client and return the text that came back and in how many chunks.

    Raises ``RuntimeError`` with the error's code when the request was refused.
    """
    bus = await nats.connect(url, nkeys_seed=str(seed_file), inbox_prefix=inbox_prefix(BusRole.CLIENT))
    try:
        inbox = bus.new_inbox()
        answers = await bus.subscribe(inbox)
        await bus.publish(GENERATE, json.dumps(body).encode(), inbox, headers={"Authorization": f"Bearer {key}"})
        text = ""
        for num_chunks in range(1, _CHUNKS_MAX):
            message = await answers.next_msg(timeout=_CHUNK_TIMEOUT_S)
            chunk = json.loads(message.data)
            if "error" in chunk:
                raise RuntimeError(f"NATS refused: {chunk['error']['code']}")
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if "octavo-final" in (message.headers or {}):
                return text, num_chunks
        raise RuntimeError("the answer over NATS has no end")
    finally:
        await bus.close()
