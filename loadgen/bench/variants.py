"""How each rival can be set on this machine. The comparison tries the ways of each and keeps the fastest."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rival import Variant
from bench.workload import Workload

ROOT = Path(__file__).parents[2]
PEERS_VENV = ROOT / ".venv-peers"
_INTEL_OPENMP = PEERS_VENV / "lib" / "libiomp5.so"
_QUIET = {
    "PYTHONPATH": str(ROOT / "loadgen"),
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@dataclass(frozen=True)
class Family:
    """One rival: the ways to set it, the jobs it does, and the job that decides which way is the fastest."""

    name: str
    variants: Sequence[Variant]
    jobs: Sequence[str]
    deciding_job: str


def octavo_family(base: Path, workload: Workload) -> Family:
    """Return our own engine, as the worker sets it up."""
    module = "bench.drivers.octavo_driver"
    sizes = ("--adapters", str(workload.num_requests), "--rank", str(workload.rank))
    variant = Variant("octavo", (sys.executable, "-m", module, str(base), *sizes), _QUIET)
    return Family("octavo", (variant,), ("base", "one_adapter", "mixed"), "mixed")


def peft_family(base: Path) -> Family:
    """Return transformers and PEFT, with the OpenMP that torch brings and with Intel's."""
    command = (str(PEERS_VENV / "bin" / "python"), "-m", "bench.drivers.peft_driver", str(base))
    variants = [Variant("peft", command, _QUIET)]
    if _INTEL_OPENMP.is_file():
        variants.append(Variant("peft, Intel OpenMP", command, _QUIET | _intel_openmp()))
    return Family("peft", variants, ("base", "one_adapter", "mixed"), "one_adapter")


def vllm_lora_family(base: Path, workload: Workload) -> Family:
    """Return vLLM with LoRA enabled and room for all adapters at once."""
    command = (*_vllm(base), "--lora", str(workload.num_requests), "--rank", str(workload.rank))
    variants = [Variant(f"vllm_lora, {name}", command, environment) for name, environment in _vllm_ways().items()]
    return Family("vllm_lora", variants, ("base", "one_adapter", "mixed"), "mixed")


def vllm_base_family(base: Path) -> Family:
    """Return vLLM with LoRA switched off, compiled and eager."""
    ways = _vllm_ways()
    variants = [Variant(f"vllm_base, {name}", _vllm(base), environment) for name, environment in ways.items()]
    last = list(ways)[-1]
    variants.append(Variant(f"vllm_base, {last}, eager", (*_vllm(base), "--eager"), ways[last]))
    return Family("vllm_base", variants, ("base",), "base")


def _vllm(base: Path) -> tuple[str, ...]:
    return (str(PEERS_VENV / "bin" / "python"), "-m", "bench.drivers.vllm_driver", str(base))


def _vllm_ways() -> dict[str, dict[str, str]]:
    """Return vLLM's default, which keeps one core for its own scheduler, and two ways that compute on all of them.

    In one process nothing spins on a core that the products need; that is how its own offline mode can be run.
    """
    intel = {"LD_PRELOAD": str(_INTEL_OPENMP)} if _INTEL_OPENMP.is_file() else {}
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(len(_cores()))}
    return {
        "default": _QUIET,
        "all cores bound": _QUIET | intel | {"VLLM_CPU_OMP_THREADS_BIND": ",".join(_cores())},
        "one process": _QUIET | one_process | (_intel_openmp() if intel else {}),
    }


def _intel_openmp() -> dict[str, str]:
    # The last two are what vLLM sets for itself where it binds threads.
    return {
        "LD_PRELOAD": str(_INTEL_OPENMP),
        "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{','.join(_cores())}]",
        "KMP_BLOCKTIME": "5",
        "KMP_TPAUSE": "0",
    }


def _cores() -> list[str]:
    return [str(core) for core in sorted(os.sched_getaffinity(0))]
