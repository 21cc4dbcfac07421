"""What one step tells the model's modules: set by whoever runs the model, read by linears and attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable


class UnsupportedBase(Exception):
    """This base cannot be served; the message is one sentence that says why. Refuses start-up."""


@dataclass(frozen=True)
class KvShape:
    """How the keys and values of one layer group lie in a page: ``[layers][k, v][heads][tokens][head_dim]``."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    page_tokens: int = 16

    @property
    def layer_elements(self) -> int:
        """Elements of one layer in one page."""
        return 2 * self.num_kv_heads * self.page_tokens * self.head_dim

    @property
    def page_elements(self) -> int:
        """Elements of one page: ``page_tokens`` tokens of all layers."""
        return self.num_layers * self.layer_elements

    def num_pages(self, num_tokens: int) -> int:
        """Return how many pages hold ``num_tokens`` tokens."""
        return -(-num_tokens // self.page_tokens)


@dataclass(frozen=True)
class StepInputs:
    """One packed batch of N rows, as the modules need it.

    ``tables`` has an entry for a module only when an adapter of this batch targets it.
    ``token_offsets`` [N] int64 says where each row's key goes (layer 0, head 0).
    """

    arena: Tensor
    kv: KvTable
    token_offsets: Tensor
    groups: RowGroups
    tables: Mapping[str, RowTable]


@dataclass
class StepContext:
    """The one object that all replaced modules of a model share; ``inputs`` is None outside a step."""

    kv_shape: KvShape
    inputs: StepInputs | None = None
    layers_called: set[int] = field(default_factory=set)
    """Layers whose attention ran through the arena since this was last cleared; read by the self-check."""

    @contextmanager
    def step(self, inputs: StepInputs) -> Iterator[None]:
        """Make ``inputs`` what the modules see, for one forward pass."""
        self.inputs = inputs
        try:
            yield
        finally:
            self.inputs = None
