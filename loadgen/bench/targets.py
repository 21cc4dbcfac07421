"""What the engine's measurements must be, each beside what the machine itself allows."""

from collections.abc import Mapping

from bench.report import Target


def targets_of(median: Mapping[str, float], p99: Mapping[str, float], largest_rank_share: float) -> list[Target]:
    """Return what follows from medians by name, and from the 99th percentile of ``quiet`` and ``loading`` steps.

    ``largest_rank_share`` is the largest rank of a mixed batch over its mean.
    """
    return [
        Target("mixed_over_base", median["mixed_over_base"], _mixed_floor(median), least=0.75),
        Target("decode_over_floor", median["decode_over_floor"], _decode_floor(median), most=1.5),
        Target(
            "ranks_over_summed",
            median["ranks_over_summed"],
            f"1 at the summed rank; the largest rank for all would be {largest_rank_share:g}",
            least=0.85,
            most=1.15,
        ),
        Target("schema_over_free", median["schema_over_free"], _schema_floor(median), least=0.9),
        Target("loading_over_quiet_p99", p99["loading"] / p99["quiet"], f"1: {p99['quiet']:.1f} ms", most=1.3),
        Target("load_over_memcpy", median["load_over_memcpy"], _memcpy_floor(median), most=2.0),
    ]


def _mixed_floor(median: Mapping[str, float]) -> str:
    return f"at most {median['mixed_over_base_bound']:.2f}: the base's step and one read of all adapters"


def _decode_floor(median: Mapping[str, float]) -> str:
    floor_ms, between_ms = median["decode_floor_ms"], median["base_between_ms"]
    least = (floor_ms + between_ms) / floor_ms
    return f"1: {floor_ms:.1f} ms of packed products; {least:.2f} with {between_ms:.1f} ms of Python between kernels"


def _schema_floor(median: Mapping[str, float]) -> str:
    return f"1: {median['free_tok_s']:.4g} tokens/s, as many tokens of the same prompts and adapters"


def _memcpy_floor(median: Mapping[str, float]) -> str:
    return f"1: {median['memcpy_ms']:.2f} ms of memcpy"
