"""How long PEFT takes to load one more adapter, beside our load of the same one."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def peft_load_ms(base: Path, adapters: Sequence[Path]) -> list[float]:
    """Return the milliseconds of ``load_adapter`` for each of ``adapters`` but the first, in the dtype of the base.

    The first makes a PEFT model of the base, which is not counted. Files are in the page cache or not, as they happen
    to be; our own loads begin at packs in host memory.
    """
    with warnings.catch_warnings():
        # Other projects' notices to each other.
        warnings.simplefilter("ignore", FutureWarning)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, local_files_only=True)
        adapted = PeftModel.from_pretrained(model, adapters[0], adapter_name="first", autocast_adapter_dtype=False)
        times_ms = []
        for number, adapter in enumerate(adapters[1:]):
            started = time.perf_counter()
            adapted.load_adapter(adapter, adapter_name=f"a{number}", autocast_adapter_dtype=False)
            times_ms.append((time.perf_counter() - started) * 1e3)
            adapted.delete_adapter(f"a{number}")
    return times_ms
