"""What sealing costs a push and a cold load: the cipher beside the hash that every load computes anyway, and a copy."""

import json
import os
import sys
import time
from collections.abc import Callable

from bench.report import Spread, console, machine_json, print_spreads, spread_of, spreads_json, warn_if_busy
from octavo_shared.pack import digest_of
from octavo_shared.seal import SealBroken, new_key, open_sealed, seal

_SIZES_BYTES = {"300_kib": 300 * 1024, "4_mib": 4 * 2**20, "64_mib": 64 * 2**20}
"""A small adapter's pack, one of rank 16 on all modules of a small base, and a large one."""
_ROUND_BYTES = 256 * 2**20
_NUM_ROUNDS = 5
_CONTEXT = b"bench"


def main() -> int:
    """Print a table and, last, one JSON line; 1 when what was sealed does not come back."""
    out = console()
    warn_if_busy(out)
    spreads: dict[str, Spread] = {}
    notes: dict[str, str] = {}
    for name, size_bytes in _SIZES_BYTES.items():
        pack, key = os.urandom(size_bytes), new_key()
        sealed = seal(pack, key, _CONTEXT)
        if not _is_right(pack, sealed, key):
            out.print(f"{name}: what was sealed does not come back")
            return 1
        works: dict[str, Callable[[], object]] = {
            "seal": lambda pack=pack, key=key: seal(pack, key, _CONTEXT),  # type: ignore[misc]
            "open": lambda sealed=sealed, key=key: open_sealed(sealed, key, _CONTEXT),  # type: ignore[misc]
            "sha256": lambda pack=pack: digest_of(pack),  # type: ignore[misc]
            "copy": lambda pack=pack: bytearray(pack),  # type: ignore[misc]
        }
        for what, work in works.items():
            work()
            num_times = max(1, _ROUND_BYTES // size_bytes)
            seconds = [_seconds(work, num_times) / num_times for _ in range(_NUM_ROUNDS)]
            spreads[f"{what}_{name}_mb_per_s"] = spread_of([size_bytes / 1e6 / one for one in seconds])
            notes[f"{what}_{name}_mb_per_s"] = f"{spread_of(seconds).median * 1e3:.3f} ms a pack"
    print_spreads(out, "sealing", spreads, notes)
    print(json.dumps({**machine_json(("cryptography",)), **spreads_json(spreads)}))
    return 0


def _seconds(work: Callable[[], object], num_times: int) -> float:
    begun = time.perf_counter()
    for _ in range(num_times):
        work()
    return time.perf_counter() - begun


def _is_right(pack: bytes, sealed: bytes, key: bytes) -> bool:
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    try:
        open_sealed(changed, key, _CONTEXT)
    except SealBroken:
        return open_sealed(sealed, key, _CONTEXT) == pack
    return False


if __name__ == "__main__":
    sys.exit(main())
