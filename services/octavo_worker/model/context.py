"""What one step tells the model's modules: set by whoever runs the model, read by linears and attention."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from octavo_kernels.layout import KvTable, RowGroups, RowTable
from octavo_worker.model.kv_shape import KvShape


class UnsupportedBase(Exception):
    """This base cannot be served; the message is one sentence that says why. Refuses start-up."""


@dataclass(frozen=True)
class LayerGroupInputs:
    """Where one layer group finds the keys and values of a batch of N rows.

    ``token_offsets`` [N] int64 says where each row's key goes (first layer of the group, head 0).
    """

    table: KvTable
    token_offsets: Tensor


@dataclass(frozen=True)
class StepInputs:
    """One packed batch of N rows, as the modules need it.

    ``kv`` has an entry for each layer group of the base. ``tables`` has one for a module only when an adapter of this
    batch targets it.
    """

    arena: Tensor
    kv: tuple[LayerGroupInputs, ...]
    groups: RowGroups
    tables: Mapping[str, RowTable]


@dataclass
class StepContext:
    """The one object that all replaced modules of a model share; ``inputs`` is None outside a step."""

    kv_shape: KvShape
    inputs: StepInputs | None = None

    @contextmanager
    def step(self, inputs: StepInputs) -> Iterator[None]:
        """Make ``inputs`` what the modules see, for one forward pass."""
        self.inputs = inputs
        try:
            yield
        finally:
            self.inputs = None
