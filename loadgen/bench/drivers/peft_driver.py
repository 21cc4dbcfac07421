"""transformers and PEFT on this CPU: one batch padded on the left, keys and values cached, ``adapter_names`` mixed.

Run as ``python -m bench.drivers.peft_driver BASE [--threads N]``; see ``driver`` for the protocol.
"""

import argparse
import itertools
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bench.drivers.driver import Rival, claim_output, serve
from bench.drivers.messages import Job, Ready

_ATTENTION = "sdpa"
_PAD_TOKEN = 0
"""Masked, so any token does."""


class Peft(Rival):
    """The base alone is a model of its own without PEFT's layers, as somebody without adapters would run it."""

    def __init__(self, base: str) -> None:
        self._folder = base
        self._base = self._load_base()
        self._wrapped: Any = None
        self._names: dict[str, str] = {}
        self._numbers = itertools.count()

    def describe(self) -> Ready:
        """Return versions and settings."""
        settings = {
            "dtype": "bfloat16",
            "adapter_dtype": "as saved (autocast_adapter_dtype=False)",
            "attn_implementation": _ATTENTION,
            "padding": "left",
            "use_cache": "True",
            "threads": str(torch.get_num_threads()),
            "LD_PRELOAD": Path(os.environ.get("LD_PRELOAD", "")).name,
        }
        return Ready({name: version(name) for name in ("peft", "torch", "transformers")}, settings)

    def prepare(self, job: Job) -> None:
        """Load the adapters that are new."""
        for adapter in job.adapters:
            if adapter is not None and adapter not in self._names:
                self._names[adapter] = self._add(adapter)

    def generate(self, job: Job) -> tuple[tuple[int, ...], ...]:
        """Answer all prompts in one ``generate``."""
        width = max(len(prompt) for prompt in job.prompts)
        tokens = torch.full((len(job.prompts), width), _PAD_TOKEN)
        mask = torch.zeros_like(tokens)
        for i, prompt in enumerate(job.prompts):
            tokens[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        used = set(job.adapters)
        model, extra = self._base, {}
        if used != {None}:
            model = self._wrapped
            if len(used) == 1:
                # One adapter for all goes PEFT's ordinary way, which is faster than naming it for every row.
                model.set_adapter(self._names[str(job.adapters[0])])
            else:
                extra = {"adapter_names": [self._names[a] if a else "__base__" for a in job.adapters]}
        with torch.inference_mode():
            output = model.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=job.num_new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=_PAD_TOKEN,
                **extra,
            )
        return tuple(tuple(row) for row in output[:, width:].tolist())

    def load(self, adapter: str) -> float:
        """Return the milliseconds of PEFT's ``load_adapter``."""
        started = time.perf_counter()
        name = self._add(adapter)
        ms = (time.perf_counter() - started) * 1e3
        self._wrapped.delete_adapter(name)
        return ms

    def _add(self, adapter: str) -> str:
        name = f"a{next(self._numbers)}"
        # Left as they are, adapters compute in the base's dtype; PEFT would make them float32 otherwise.
        if self._wrapped is None:
            self._wrapped = PeftModel.from_pretrained(
                self._load_base(), adapter, adapter_name=name, autocast_adapter_dtype=False
            )
            self._wrapped.train(mode=False)
        else:
            self._wrapped.load_adapter(adapter, adapter_name=name, autocast_adapter_dtype=False)
        return name

    def _load_base(self) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            self._folder, dtype=torch.bfloat16, attn_implementation=_ATTENTION, local_files_only=True
        )
        model.train(mode=False)
        # Everybody writes all tokens, whatever the end-of-text token says.
        model.generation_config.eos_token_id = None
        return model


def main() -> None:
    """Serve until told to close."""
    output = claim_output()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    serve(Peft(given.base), output)


if __name__ == "__main__":
    main()
