"""Tokens back to text, piece by piece: whole characters only, and never a letter that later tokens would change."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so more open tokens than this are bytes that never become one.
_OPEN_TOKENS_MAX = 16


class Detokenizer:
    """Decodes one answer. Keeps the tokens of the last piece as context, since decoders treat a first token apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_context = 0

    def push(self, tokens: Sequence[int]) -> str:
        """Return the text that ``tokens`` complete; what may still change is held back."""
        pieces = []
        for token in tokens:
            self._window.append(token)
            pieces.append(self._take(is_last=len(self._window) - self._num_context > _OPEN_TOKENS_MAX))
        return "".join(pieces)

    def flush(self) -> str:
        """Return what was held back: an unfinished character becomes U+FFFD, as decoding everything at once does."""
        return self._take(is_last=True)

    def _take(self, *, is_last: bool) -> str:
        known = self._decode(self._window[: self._num_context])
        text = self._decode(self._window)
        if len(text) <= len(known) or (text.endswith(_REPLACEMENT) and not is_last):
            return ""
        self._window = self._window[self._num_context :]
        self._num_context = len(self._window)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


class StopStrings:
    """Finds the first of ``stops`` in a text that arrives in pieces; holds back what may be the start of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """Return the text that may be shown now; after ``is_found`` nothing more comes."""
        if self.is_found:
            return ""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.is_found = True
            shown, self._held = self._held[: min(places)], ""
            return shown
        num_held = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - num_held
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def flush(self) -> str:
        """Return what was held back in vain."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        # The longest end of the held text that is a beginning of ``stop``.
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
