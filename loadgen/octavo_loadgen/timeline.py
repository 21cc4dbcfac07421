"""What the client saw of one request, and the four durations that follow from it."""

from dataclasses import dataclass, field
from itertools import pairwise

from octavo_shared.messages.generation import Tier

OVERRUN = "client_overrun"
"""It arrived when the bound of requests in flight was reached, and was not sent."""
DEADLINE = "client_deadline"
CANCELLED = "client_cancelled"
TRUNCATED = "client_truncated"
"""The stream ended without a terminal event."""
UNDECODABLE = "client_undecodable"
CONNECTION = "client_connection"


@dataclass(slots=True)
class Timeline:
    """Points on the monotonic clock, in milliseconds. Durations begin at ``scheduled_ms``, never at the send:
    a client or a server that falls behind cannot hide it by sending later.
    """

    scheduled_ms: float
    sent_ms: float | None = None
    text_ms: list[float] = field(default_factory=list)
    """When each chunk that held text came."""
    finish_ms: float | None = None
    """When the finish reason came; the stream may still owe its usage and its end."""
    ended_ms: float | None = None
    """When the request was over, either way."""
    num_tokens: int = 0
    tier: str | None = None
    error: str | None = None

    def complete(self, at_ms: float) -> None:
        """The stream said that it ends; without a finish reason it ended too early."""
        if self.ended_ms is None:
            self.ended_ms = at_ms
            self.error = None if self.finish_ms is not None else TRUNCATED

    def fail(self, code: str, at_ms: float) -> None:
        """End with ``code``; what already ended stays as it is."""
        if self.ended_ms is None:
            self.ended_ms = at_ms
            self.error = code

    @property
    def is_complete(self) -> bool:
        return self.ended_ms is not None and self.error is None

    @property
    def is_cold(self) -> bool:
        return self.tier == Tier.COLD

    @property
    def ttft_ms(self) -> float | None:
        """Until the first text; an answer without text had its first token when it finished."""
        first_ms = self.text_ms[0] if self.text_ms else self.finish_ms
        return None if first_ms is None else first_ms - self.scheduled_ms

    @property
    def end_to_end_ms(self) -> float | None:
        return None if self.ended_ms is None else self.ended_ms - self.scheduled_ms

    @property
    def tpot_ms(self) -> float | None:
        """(end to end − TTFT) / (tokens − 1); None below two tokens."""
        if self.ttft_ms is None or self.end_to_end_ms is None or self.num_tokens < 2:
            return None
        return (self.end_to_end_ms - self.ttft_ms) / (self.num_tokens - 1)

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between chunks with text."""
        return [later - earlier for earlier, later in pairwise(self.text_ms)]

    @property
    def send_lag_ms(self) -> float | None:
        """How late the client itself was."""
        return None if self.sent_ms is None else self.sent_ms - self.scheduled_ms
