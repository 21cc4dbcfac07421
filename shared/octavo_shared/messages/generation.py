"""Gateway to worker: one attempt at a request, and what comes back.

An *attempt* is one try at a request on one worker. Events of an attempt arrive on the inbox that its
``Generate`` names as reply subject: ``Busy``, or ``Started``, then ``TokenChunk``s, then exactly one of
``Finished`` and ``Failed``. ``Failed`` may also come instead of ``Started``.
"""

from enum import StrEnum

import msgspec

from octavo_shared.errors import Refusal
from octavo_shared.references import AdapterId, Digest, Fingerprint, PackKey, TenantId, WorkerId


class Tier(StrEnum):
    """Where an adapter was found."""

    RESIDENT = "resident"
    WARM = "warm"
    LOCAL = "local"
    COLD = "cold"
    BASE = "base"
    """No adapter was asked for."""


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"


class AdapterHandle(msgspec.Struct, frozen=True):
    """All that a worker needs to load one revision; identity hands it out after its checks."""

    adapter_id: AdapterId
    tenant_id: TenantId
    revision: int
    digest: Digest
    base: Fingerprint
    object_key: str
    pack_bytes: int
    ticket: bytes = b""
    """Proves to identity, for a while, that it gave this handle to somebody who may use the adapter: what data keys
    are handed out for. Empty in a handle that only says where something is."""

    @property
    def pack_key(self) -> PackKey:
        """What caches know its pack by."""
        return (self.adapter_id, self.digest)


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen. ``temperature`` 0 is greedy; ``seed`` is always set, by the gateway if need be.

    ``top_k`` 0 keeps all tokens. Presence and frequency count the answer's tokens, repetition the prompt's too.
    ``logit_bias`` holds (token, bias) pairs. No stop token ends the answer before ``min_tokens``. ``num_logprobs`` -1
    asks for none, 0 for the chosen token's alone, more for so many of the likeliest. ``choice`` tells the answers to
    one request apart; with the seed and the token's index it is all that noise depends on. ``schema`` is a JSON schema
    that the answer must satisfy. ``is_scored`` asks how likely the prompt's own tokens are and for no answer: with it,
    ``max_tokens`` is 0.
    """

    max_tokens: int
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    num_logprobs: int = -1
    choice: int = 0
    schema: str = ""
    is_scored: bool = False


class Generate(msgspec.Struct, frozen=True):
    """``prompt`` and ``forced`` are token ids; ``forced`` was already delivered by an earlier attempt.

    ``sampling.max_tokens`` counts the forced tokens too. ``budget_ms`` is what is left of the deadline.
    """

    request_id: str
    attempt: int
    gateway_id: str
    tenant_id: TenantId
    base: Fingerprint
    prompt: tuple[int, ...]
    sampling: Sampling
    budget_ms: int
    adapter: AdapterHandle | None = None
    forced: tuple[int, ...] = ()


class Cancel(msgspec.Struct, frozen=True):
    """The caller went away, or a stop string was found. Idempotent; unknown ids are ignored."""

    request_id: str


class Lease(msgspec.Struct, frozen=True):
    """Sent by every gateway each ``LEASE_INTERVAL_MS``; workers stop generating for silent gateways."""

    gateway_id: str


LEASE_INTERVAL_MS = 1_000
LEASE_TIMEOUT_MS = 5_000


class Timings(msgspec.Struct, frozen=True):
    """Where the time before the first token went, as the worker saw it; all in milliseconds."""

    queued_ms: float = 0.0
    """From arrival until the first step that held a part of the prompt, load included."""
    load_ms: float = 0.0
    fetch_ms: float = 0.0
    """The part of ``load_ms`` spent reading from the tier where the pack was."""
    verify_ms: float = 0.0
    copy_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0


class _Event(msgspec.Struct, frozen=True, tag=True):
    request_id: str
    attempt: int


class Busy(_Event, frozen=True, tag=True):
    """The worker's queue is full or it drains: nothing was begun, try another worker."""

    reason: str


class Started(_Event, frozen=True, tag=True):
    """Sent before the first token; every token of this attempt is computed with ``digest``."""

    worker_id: WorkerId
    base: Fingerprint
    tier: Tier
    revision: int | None = None
    digest: Digest | None = None
    timings: Timings = Timings()


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural logarithms of the model's own probabilities, before temperature, penalties, biases or a schema.

    ``top`` holds (token, logprob) of the likeliest tokens, likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...] = ()


class TokenChunk(_Event, frozen=True, tag=True):
    """``first_index`` is the index of ``tokens[0]`` in the answer, forced tokens counted.

    ``logprobs`` has one entry per token when the request asked for them, else none.
    """

    first_index: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


class Finished(_Event, frozen=True, tag=True):
    """``prompt_logprobs`` has, where the prompt was scored, one entry for each of its tokens but the first.

    They are natural logarithms of probabilities as float32, little-endian: no longer than the prompt was.
    """

    reason: FinishReason
    num_prompt_tokens: int
    num_completion_tokens: int
    timings: Timings = Timings()
    num_cached_tokens: int = 0
    prompt_logprobs: bytes = b""


class Failed(_Event, frozen=True, tag=True):
    """``refusal`` is the error; the gateway makes another attempt only where its class is retryable."""

    refusal: Refusal


GenerationEvent = Busy | Started | TokenChunk | Finished | Failed
