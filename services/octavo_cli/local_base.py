"""The laptop's base model: prepared once by the worker's own tool, kept in the cache directory."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from octavo_cli.processes import Process, StartFailed, finish

_PREPARE_S = 600.0


def cache_folder() -> Path:
    """Return where bases and the demo's adapters are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octavo"


async def prepared_base(report: Callable[[str], None]) -> Path:
    """Return the base's directory; the first time it is made by a process of the worker's environment."""
    cache = cache_folder()
    out = cache / "bases" / "smollm2-135m-instruct"
    report("preparing the base (once, about half a minute)")
    command = [sys.executable, "-m", "octavo_worker.prepare_base", "--out", str(out)]
    process = Process("prepare-base", command, cache / "prepare-base.log", os.environ)
    await process.start()
    try:
        if await process.wait(_PREPARE_S) != 0:
            raise StartFailed(f"the base could not be prepared\n{process.log_tail()}")
    except TimeoutError:
        raise StartFailed(f"the base was not prepared after {_PREPARE_S:.0f} s\n{process.log_tail()}") from None
    finally:
        await finish(process.stop())
    return out
