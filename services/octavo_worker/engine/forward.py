"""One pass of a batch through the base: rows in, the tokens chosen for them and the scores of prompts out."""

from dataclasses import dataclass

import torch

from octavo_shared.references import PackKey
from octavo_worker.adapters.pages import Arena
from octavo_worker.adapters.placement import Placement
from octavo_worker.adapters.residents import Residents
from octavo_worker.engine import batch
from octavo_worker.engine.batch import Batch, Part
from octavo_worker.engine.choosing import Chosen, choose_tokens
from octavo_worker.engine.logits import scores_of
from octavo_worker.engine.slots import SlotTables
from octavo_worker.model.base import BaseModel


@dataclass(frozen=True)
class Outcome:
    """What a batch gave: ``chosen`` by row of ``batch.sampled``, ``scores`` by part of ``batch.scored``."""

    batch: Batch
    chosen: Chosen
    scores: list[list[float]]


class ForwardPass:
    """Belongs to the stepping thread."""

    def __init__(self, base: BaseModel, arena: Arena, residents: Residents) -> None:
        self._base = base
        self._arena = arena
        self._residents = residents
        self._slots = SlotTables(tuple(base.manifest.modules), base.device)

    def run(self, parts: list[Part]) -> Outcome:
        """Compute ``parts``, whose pages are reserved and whose adapters are resident and pinned."""
        adapters: dict[PackKey, Placement] = {}
        for part in parts:
            key = part.sequence.request.adapter_key
            if key is not None and key not in adapters:
                placement = self._residents.get(key)
                assert placement is not None, "a pinned adapter was evicted"
                adapters[key] = placement
        with torch.inference_mode():
            tables = self._slots.select(adapters)
            slots = [self._slots.slot_of(part.sequence.request.adapter_key) for part in parts]
            packed = batch.build(parts, slots, tables, self._arena.memory, self._base.kv_shape)
            logits = self._base.logits(packed.inputs, packed.tokens, packed.positions, packed.rows)
            num_sampled = len(packed.sampled)
            chosen = choose_tokens(logits[:num_sampled], [part.sequence for part in packed.sampled])
            scores = scores_of(logits[num_sampled:], [part.scored_tokens for part in packed.scored])
            return Outcome(packed, chosen, scores)
