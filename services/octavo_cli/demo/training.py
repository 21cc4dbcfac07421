"""The demo's two adapters: trained once by a process of the worker's environment, then cached."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from octavo_cli.local_base import cache_folder

_DATA = Path(__file__).parent / "data"
_TRAINING_S = 600.0
_TRAINER_VERSION = "2"
_RANKS = {"alice": 16, "bob": 8}
"""Different on purpose: the two run in one batch."""

Progress = Callable[[int, int], None]


def adapter_folder(person: str, base_dir: Path) -> Path:
    """Return the cached adapter's folder; its name changes with the data, the base's directory and the trainer."""
    key = hashlib.sha256((_DATA / f"{person}.jsonl").read_bytes())
    key.update(f"{base_dir.resolve()} {base_dir.stat().st_mtime_ns} {_TRAINER_VERSION}".encode())
    return cache_folder() / "demo" / f"{person}-{key.hexdigest()[:16]}"


async def train(person: str, base_dir: Path, progress: Progress) -> Path:
    """Return ``person``'s adapter as a PEFT directory, training it if it is not cached.

    ``progress(step, steps)`` is called for every line of the trainer. Raises ``RuntimeError`` when it fails.
    """
    folder = adapter_folder(person, base_dir)
    if (folder / "octavo.json").exists():
        progress(1, 1)
        return folder
    # The trainer makes its folder appear complete or not at all, so a cached one is a good one.
    command = ["-m", "octavo_worker.train_demo", "--base", str(base_dir),
               "--data", str(_DATA / f"{person}.jsonl"), "--out", str(folder),
               "--rank", str(_RANKS[person])]  # fmt: skip
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_TRAINING_S):
            assert child.stdout is not None
            assert child.stderr is not None
            errors = asyncio.create_task(child.stderr.read(), name="trainer's errors")
            async for line in child.stdout:
                if line.startswith(b"{"):
                    report = json.loads(line)
                    progress(report["step"], report["steps"])
            if await child.wait() != 0:
                raise RuntimeError(f"training {person} failed:\n{(await errors).decode(errors='replace')[-2000:]}")
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return folder
