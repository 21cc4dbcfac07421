"""A sequence: one attempt at a request while the engine has it, and the events that it gives rise to."""

import time
from dataclasses import dataclass, field

from octavo_shared.errors import Refusal
from octavo_shared.messages.generation import FinishReason, Sampling, TokenLogprobs
from octavo_shared.references import PackKey, TenantId
from octavo_worker.engine.guides import Guide
from octavo_worker.engine.page_run import PageRun


@dataclass(frozen=True)
class SequenceRequest:
    """What the engine is asked to do. ``forced`` was delivered by an earlier attempt and is not delivered again.

    ``sampling.max_tokens`` and the index that noise is drawn by count the forced tokens too.
    """

    request_id: str
    attempt: int
    tenant_id: TenantId
    prompt: tuple[int, ...]
    forced: tuple[int, ...]
    sampling: Sampling
    adapter_key: PackKey | None = None


@dataclass(frozen=True)
class Span:
    """A stretch of monotonic time, in nanoseconds."""

    start_ns: int
    end_ns: int

    @property
    def duration_ms(self) -> float:
        """Milliseconds from start to end."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(frozen=True)
class SequenceTimings:
    """Where a sequence's time went. ``decode`` is None when no token was decoded after the first."""

    queued: Span
    prefill: Span | None = None
    decode: Span | None = None

    @property
    def queued_ms(self) -> float:
        """From submission until the first step that held a part of the prompt."""
        return self.queued.duration_ms

    @property
    def prefill_ms(self) -> float:
        """From there until the first token."""
        return self.prefill.duration_ms if self.prefill else 0.0

    @property
    def decode_ms(self) -> float:
        """From the first token until the last."""
        return self.decode.duration_ms if self.decode else 0.0


@dataclass(frozen=True)
class SequenceStarted:
    """The first step that held a part of this sequence is done; comes before its first tokens."""

    request_id: str
    attempt: int
    timings: SequenceTimings


@dataclass(frozen=True)
class TokensDecoded:
    """``first_index`` is the index of ``tokens[0]`` in the answer, forced tokens counted."""

    request_id: str
    attempt: int
    first_index: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True)
class SequenceFinished:
    """The end of a sequence. ``num_completion_tokens`` counts forced tokens, not the stop token."""

    request_id: str
    attempt: int
    reason: FinishReason
    num_prompt_tokens: int
    num_completion_tokens: int
    timings: SequenceTimings
    num_reused_tokens: int = 0
    prompt_logprobs: tuple[float, ...] = ()
    """Of all the prompt's tokens but the first, where it was scored."""


@dataclass(frozen=True)
class SequenceFailed:
    """The end of a sequence that could not be served."""

    request_id: str
    attempt: int
    refusal: Refusal


StepEvent = SequenceStarted | TokensDecoded | SequenceFinished | SequenceFailed


@dataclass(eq=False)
class Sequence:
    """The engine's own record. Touched by the stepping thread only, once the intake has handed it over."""

    request: SequenceRequest
    order: int
    """Grows with every submission: who came first."""
    guide: Guide | None = None
    """The answer's way through its schema, if it has one."""
    submitted_ns: int = field(default_factory=time.monotonic_ns)
    tokens: list[int] = field(default_factory=list)
    """Prompt, forced and generated tokens."""
    num_cached_tokens: int = 0
    """How many of them have keys and values in pages."""
    num_reserved_tokens: int = 0
    """How many of them its pages have room for."""
    runs: list[PageRun] = field(default_factory=list)
    """Its pages in each layer group; none before it first ran."""
    num_reused_tokens: int = 0
    """How many of the prompt's tokens had been computed when it began."""
    prompt_logprobs: list[float] = field(default_factory=list)
    """What is known so far of a prompt that is scored: entry i is of token i + 1."""
    first_step_ns: int = 0
    first_token_ns: int = 0
    is_started: bool = False

    def __post_init__(self) -> None:
        self.tokens = [*self.request.prompt, *self.request.forced]

    @property
    def id(self) -> tuple[str, int]:
        """Request id and attempt, as all its events begin."""
        return (self.request.request_id, self.request.attempt)

    @property
    def is_scored(self) -> bool:
        """Whether the prompt's tokens are all that is asked for."""
        return self.request.sampling.is_scored

    @property
    def num_answer_tokens(self) -> int:
        """Forced and generated tokens: also the index of the next one."""
        return len(self.tokens) - len(self.request.prompt)

    def timings(self, now_ns: int) -> SequenceTimings:
        """Return where the time went until ``now_ns``."""
        if not self.first_step_ns:
            return SequenceTimings(queued=Span(self.submitted_ns, now_ns))
        return SequenceTimings(
            queued=Span(self.submitted_ns, self.first_step_ns),
            prefill=Span(self.first_step_ns, self.first_token_ns or now_ns),
            decode=Span(self.first_token_ns, now_ns) if self.first_token_ns else None,
        )

    def finished(self, reason: FinishReason, now_ns: int) -> SequenceFinished:
        """Return the event that ends this sequence."""
        return SequenceFinished(
            request_id=self.request.request_id,
            attempt=self.request.attempt,
            reason=reason,
            num_prompt_tokens=len(self.request.prompt),
            num_completion_tokens=self.num_answer_tokens,
            timings=self.timings(now_ns),
            num_reused_tokens=self.num_reused_tokens,
            prompt_logprobs=tuple(self.prompt_logprobs),
        )

    def failed(self, refusal: Refusal) -> SequenceFailed:
        """Return the event that ends this sequence with an error."""
        return SequenceFailed(*self.id, refusal)
