"""What a run showed: tables for people, targets, and the fields of the JSON line."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from rich.console import Console

from bench import report
from bench.million.run import Plan, Result, Sized
from bench.million.sampling import Times
from bench.report import Target

REGISTER_PER_S_MIN = 6_000
RATIO_MAX = 1.2
COLD_P99_MS_MAX = 15.0
RESTART_S_MAX = 10.0
REBUILD_S_MAX = 300.0
_NAN = float("nan")
LEFT_OUT = (
    "Not part of a registration here: uploads, their validation and packing; all adapters share one pack, which is not "
    "stored. Each has its own data key, and its own event with a signed statement."
)


@dataclass(frozen=True)
class Summary:
    """One run with what was made of it."""

    plan: Plan
    result: Result

    @property
    def targets(self) -> list[Target]:
        """What must hold, of the largest size."""
        result, largest = self.result, self.result.sizes[-1]
        failed = result.busy.num_failed + result.busy_writes.num_failed
        few = f"1: {result.few.quantile_ms(0.99):.2f} ms of {result.sizes[0].num_adapters:,}"
        return [
            Target("register_per_s", result.register_per_s, str(result.floor or ""), least=REGISTER_PER_S_MIN),
            Target("resolve_p99_ratio", self.ratio, few, most=RATIO_MAX),
            Target("resolve_cold_p99_ms", largest.cold.quantile_ms(0.99), _cold_floor(largest), most=COLD_P99_MS_MAX),
            Target("restart_ready_s", result.restart_s, "", most=RESTART_S_MAX),
            Target("rebuild_s", result.rebuild_s, _rebuild_floor(largest), most=REBUILD_S_MAX),
            Target("failed_during_rebuild", failed, "0", most=0),
        ]

    @property
    def ratio(self) -> float:
        """p99 of the largest size over that of the smallest, both tight and measured in turns."""
        return self.result.many.quantile_ms(0.99) / self.result.few.quantile_ms(0.99)

    def print(self, out: Console) -> None:
        """Print the tables."""
        result = self.result
        report.print_rows(
            out,
            f"registry, seed {self.plan.seed}; milliseconds as p50 / p99",
            ("adapters", "registered/s", "view behind s", "tight ms", "sparse ms", "(of)", "server B each",
             "all cached B each", "disk B each"),
            [
                (f"{one.num_adapters:,}", f"{one.register_per_s:,.0f}", f"{one.followed_s:.1f}", _pair(one.warm),
                 _pair(one.cold), f"{len(one.cold.ms)}", *(f"{value:,.0f}" for value in self._bytes_each(one)))
                for one in result.sizes
            ],
        )  # fmt: skip
        report.print_rows(
            out,
            "processor time of a registration, us; what identity does meanwhile is to follow the stream",
            ("adapters", *result.sizes[-1].used_us, "together"),
            [
                (f"{one.num_adapters:,}", *(f"{used:,.0f}" for used in (*one.used_us.values(), _together_us(one))))
                for one in result.sizes
            ],
        )
        busy, writes = result.busy, result.busy_writes
        rows = [
            (f"tight among {result.sizes[0].num_adapters:,}, ms", f"{_pair(result.few)} (of {len(result.few.ms)})"),
            ("tight among all, in turns with those, ms", f"{_pair(result.many)} (of {len(result.many.ms)})"),
            ("ready after a kill of nats-server and identity, s", f"{result.restart_s:.2f}"),
            ("first resolve after that, ms", f"{result.first_resolve_s * 1e3:.1f}"),
            ("view made anew, s", f"{result.rebuild_s:.1f}"),
            ("resolves meanwhile, ms", f"{_pair(busy)} (of {len(busy.ms)}, {busy.num_failed} failed)"),
            ("writes meanwhile, ms", f"{_pair(writes)} (of {len(writes.ms)}, {writes.num_failed} failed)"),
            ("identity, MB of memory", f"{result.identity_bytes / 1e6:.0f}"),
            ("its view, MB of disk", f"{result.view_bytes / 1e6:.0f}"),
        ]  # fmt: skip
        report.print_rows(out, f"with {result.sizes[-1].num_adapters:,} adapters", ("", "value"), rows)
        out.print(LEFT_OUT)
        report.print_targets(out, self.targets)

    def fields(self) -> Mapping[str, object]:
        """Return what the JSON line says. Percentiles at the top are of the largest size, tight."""
        result, largest = self.result, self.result.sizes[-1]
        return {
            "adapters": largest.num_adapters,
            "register_per_s": _rounded(result.register_per_s),
            "resolve_p50_ms": _rounded(largest.warm.quantile_ms(0.5)),
            "resolve_p99_ms": _rounded(largest.warm.quantile_ms(0.99)),
            "resolve_p99_ratio_1m_over_1k": _rounded(self.ratio),
            "resolve_in_turns": {"few": _times_fields(result.few), "many": _times_fields(result.many)},
            "resolve_cold_p50_ms": _rounded(largest.cold.quantile_ms(0.5)),
            "resolve_cold_p99_ms": _rounded(largest.cold.quantile_ms(0.99)),
            "server_bytes_per_adapter": _rounded(self._bytes_each(largest)[0]),
            "disk_bytes": largest.disk_bytes,
            "restart_ready_s": _rounded(result.restart_s),
            "rebuild_s": _rounded(result.rebuild_s),
            "rebuild_resolve_p50_ms": _rounded(result.busy.quantile_ms(0.5)),
            "rebuild_resolve_p99_ms": _rounded(result.busy.quantile_ms(0.99)),
            "rebuild_failed": result.busy.num_failed + result.busy_writes.num_failed,
            "identity_bytes": result.identity_bytes,
            "view_bytes": result.view_bytes,
            "floor": msgspec.to_builtins(result.floor),
            "shared_pack": True,
            "left_out": LEFT_OUT,
            "sizes": [self._size_fields(one) for one in result.sizes],
            "targets": report.targets_json(self.targets),
        }

    def _size_fields(self, one: Sized) -> Mapping[str, object]:
        idle, cached, disk = self._bytes_each(one)
        return {
            "adapters": one.num_adapters,
            "register_per_s": _rounded(one.register_per_s),
            "register_us": {name: _rounded(used) for name, used in one.used_us.items()},
            "view_behind_s": _rounded(one.followed_s),
            "resolve_p50_ms": _rounded(one.warm.quantile_ms(0.5)),
            "resolve_p99_ms": _rounded(one.warm.quantile_ms(0.99)),
            "num_resolved": len(one.warm.ms),
            "resolve_cold_p50_ms": _rounded(one.cold.quantile_ms(0.5)),
            "resolve_cold_p99_ms": _rounded(one.cold.quantile_ms(0.99)),
            "num_resolved_cold": len(one.cold.ms),
            "server_bytes_per_adapter": _rounded(idle),
            "server_bytes_per_adapter_all_cached": _rounded(cached),
            "disk_bytes_per_adapter": _rounded(disk),
        }

    def _bytes_each(self, one: Sized) -> tuple[float, float, float]:
        """Return bytes for each adapter: of the idle server, of one with all blocks cached, on the disk."""
        empty, num = self.result.empty_bytes, one.num_adapters
        return (one.idle_bytes - empty) / num, (one.warm_bytes - empty) / num, one.disk_bytes / num


def _times_fields(times: Times) -> Mapping[str, object]:
    p50_ms, p99_ms = times.quantile_ms(0.5), times.quantile_ms(0.99)
    return {"p50_ms": _rounded(p50_ms), "p99_ms": _rounded(p99_ms), "num": len(times.ms)}


def _pair(times: Times) -> str:
    return f"{times.quantile_ms(0.5):.2f} / {times.quantile_ms(0.99):.2f}"


def _together_us(one: Sized) -> float:
    return sum(one.used_us.values())


def _cold_floor(one: Sized) -> str:
    return f"{one.warm.quantile_ms(0.99):.2f} ms with all blocks in the server's memory"


def _rebuild_floor(one: Sized) -> str:
    return f"{(one.num_registered / one.register_per_s + one.followed_s):.0f} s while they were registered"


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if value == value else None
