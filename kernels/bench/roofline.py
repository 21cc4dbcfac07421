"""Computes what a GPU's peaks allow each kernel, for the shapes of one layer of Llama 3 8B. Nothing is measured.

    python kernels/bench/roofline.py [--rank 16] [--context 1024] [--tflops 989] [--tb-per-s 3.35]

The defaults are an H100 SXM: dense bf16 and HBM3, from NVIDIA's data sheet. Bytes and FLOPs are those of the formulas
in ../README.md, every operand read once; time is the longer of the two at the peak, launches not counted.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

ELEMENT_BYTES = 2
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
MODULES = {
    "q": (4096, 4096),
    "k": (4096, 1024),
    "v": (4096, 1024),
    "o": (4096, 4096),
    "gate": (4096, 14336),
    "up": (4096, 14336),
    "down": (14336, 4096),
}


@dataclass(frozen=True)
class Work:
    """What one kernel moves and computes for one layer."""

    name: str
    num_bytes: float
    flops: float

    @property
    def flops_per_byte(self) -> float:
        """How often what is read is used."""
        return self.flops / self.num_bytes

    def time_us(self, tflops: float, tb_per_s: float) -> float:
        """Return the microseconds that the slower of memory and multipliers takes."""
        return max(self.num_bytes / tb_per_s, self.flops / tflops) / 1e6


def base(num_rows: int) -> Work:
    """Return the layer's own seven products, for comparison."""
    weights = sum(h * o for h, o in MODULES.values())
    activations = num_rows * sum(h + o for h, o in MODULES.values())
    return Work("base products", ELEMENT_BYTES * (weights + activations), 2.0 * num_rows * weights)


def layer(num_rows: int, num_adapters: int, rank: int, context: int, num_sequences: int) -> Iterator[Work]:
    """Yield the work of each kernel, for rows that see ``context`` tokens of their sequence."""
    inputs, outputs = (sum(shape[side] for shape in MODULES.values()) for side in (0, 1))
    rank_values = 4 * num_rows * rank * len(MODULES)
    yield Work(
        "shrink",
        ELEMENT_BYTES * (num_rows * inputs + num_adapters * rank * inputs) + rank_values,
        2.0 * num_rows * rank * inputs,
    )
    yield Work(
        "expand",
        ELEMENT_BYTES * (2 * num_rows * outputs + num_adapters * rank * outputs) + rank_values,
        2.0 * num_rows * rank * outputs,
    )
    kv_bytes = ELEMENT_BYTES * num_sequences * context * 2 * KV_HEADS * HEAD_DIM
    query_bytes = 2 * ELEMENT_BYTES * num_rows * HEADS * HEAD_DIM
    yield Work("paged_attention", kv_bytes + query_bytes, 4.0 * num_rows * context * HEADS * HEAD_DIM)
    yield Work("write_kv", 2 * ELEMENT_BYTES * num_rows * 2 * KV_HEADS * HEAD_DIM, 0.0)


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tflops", type=float, default=989.0)
    parser.add_argument("--tb-per-s", type=float, default=3.35)
    given = parser.parse_args()
    ridge = given.tflops / given.tb_per_s
    print(f"Bound by memory below {ridge:.0f} FLOP per byte.\n")
    print("| step | kernel | MB | GFLOP | FLOP/byte | bound by | least µs |")
    print("|---|---|---|---|---|---|---|")
    steps = {
        "decode, 32 rows, 32 adapters": (32, 32, given.context, 32),
        "decode, 256 rows, 256 adapters": (256, 256, given.context, 256),
        "prefill, 2,048 rows, 1 adapter": (2048, 1, given.context, 2),
    }
    for name, (rows, adapters, context, sequences) in steps.items():
        for work in (base(rows), *layer(rows, adapters, given.rank, context, sequences)):
            bound = "memory" if work.flops_per_byte < ridge else "multiplying"
            time_us = work.time_us(given.tflops, given.tb_per_s)
            print(
                f"| {name} | {work.name} | {work.num_bytes / 1e6:.1f} | {work.flops / 1e9:.2f} "
                f"| {work.flops_per_byte:.1f} | {bound} | {time_us:.1f} |"
            )


if __name__ == "__main__":
    main()
