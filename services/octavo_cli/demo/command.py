"""The command line as a person types it: a process of its own that knows a gateway's address and a key."""

import asyncio
import os
from collections.abc import Sequence

from octavo_cli.processes import script
from octavo_cli.signing_key import VARIABLE

_COMMAND_S = 200.0


async def run_octavo(gateway_url: str, key: str, words: Sequence[str]) -> str:
    """Return what ``octavo WORDS`` prints; raises ``RuntimeError`` with its last words when it fails."""
    child = await asyncio.create_subprocess_exec(
        script("octavo"), *words,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        # The demo's people have registered no signing key, whatever key the person who runs it signs with.
        env={**os.environ, "OCTAVO_GATEWAY_URL": gateway_url, "OCTAVO_KEY": key, VARIABLE: ""},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_COMMAND_S):
            out, err = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        raise RuntimeError(f"octavo {words[0]}: {err.decode(errors='replace').strip()}")
    return out.decode()
