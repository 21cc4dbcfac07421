"""Log probabilities in the forms of OpenAI's two endpoints."""

from collections.abc import Sequence

import msgspec

from octavo_gateway.call import Echo, ShownToken
from octavo_gateway.openai import Ask, Kind


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


Logprobs = ChatLogprobs | TextLogprobs


class LogprobsWriter:
    """Writes the tokens of one answer, in order; remembers where in its text the next one begins."""

    def __init__(self, ask: Ask) -> None:
        self._kind = ask.kind
        self._num_top = ask.sampling.num_logprobs
        self._offset = 0

    def write(self, tokens: Sequence[ShownToken]) -> Logprobs | None:
        """Return the form that the caller's endpoint has, or None when no logprobs were asked for."""
        if self._num_top < 0:
            return None
        return _chat(tokens) if self._kind is Kind.CHAT else self._text(tokens)

    def _text(self, tokens: Sequence[ShownToken]) -> TextLogprobs:
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(token.text)
        return TextLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            # The form counts the chosen token too, wherever it stands.
            top_logprobs=[_top(token) for token in tokens] if self._num_top else None,
            text_offset=offsets,
        )


def echoed(echo: Echo) -> TextLogprobs:
    """Return the tokens of a prompt in the form of the legacy endpoint."""
    return TextLogprobs(list(echo.tokens), list(echo.logprobs), None, list(echo.offsets))


def _top(token: ShownToken) -> dict[str, float]:
    return {other.text: other.logprob for other in token.top} | {token.text: token.logprob}


def _chat(tokens: Sequence[ShownToken]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprob(
                token.text,
                token.logprob,
                _bytes(token),
                [TopLogprob(other.text, other.logprob, _bytes(other)) for other in token.top],
            )
            for token in tokens
        ]
    )


def _bytes(token: ShownToken) -> list[int] | None:
    return None if token.raw is None else list(token.raw)
