"""Answers that satisfy a JSON schema: which tokens may come next, by llguidance."""

import functools
import threading
from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLTokenizer

from octavo_kernels.allowed import EVERYTHING, Allowed
from octavo_shared.errors import InvalidRequest
from octavo_shared.guidance import grammar_of
from octavo_shared.telemetry import log

_FIELD = "response_format"
_WORD_BITS = 32


class Guide:
    """One answer's way through its schema. ``advance`` it by every token; touched by the engine's thread only."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self.num_words = -(-vocab_size // _WORD_BITS)

    def advance(self, token: int) -> bool:
        """Take one token; False when the schema does not allow it."""
        return bool(self._matcher.consume_token(token))

    @property
    def is_complete(self) -> bool:
        """Whether the answer satisfies the schema and nothing can follow."""
        return bool(self._matcher.is_stopped())


def allowed_next(guides: Sequence[Guide | None]) -> Allowed | None:
    """Return which tokens each row's guide, all of one base, allows next; None where no row has one."""
    numbered = list(enumerate(guide for guide in guides if guide is not None))
    if not numbered:
        return None
    words = np.zeros((len(numbered), numbered[0][1].num_words), dtype=np.int32)
    todo = [(guide._matcher, number) for number, guide in numbered]
    # All of them at once, on all cores.
    _executor().unsafe_compute_mask_ptr(todo, words.ctypes.data, words[0].nbytes, len(words))
    of_row = np.full(len(guides), EVERYTHING, dtype=np.int64)
    of_row[[i for i, guide in enumerate(guides) if guide is not None]] = range(len(words))
    return Allowed(words, of_row)


@functools.cache
def _executor() -> LLExecutor:
    return LLExecutor()


class Guides:
    """Makes guides for one base. The tokenizer's tables are built once, at ``warm`` or at the first guide."""

    def __init__(self, tokenizer_json: bytes, stop_token_ids: tuple[int, ...]) -> None:
        self._tokenizer_json = tokenizer_json
        self._stop_token_ids = stop_token_ids
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def warm(self) -> None:
        """Build the tables now; takes about a second for a vocabulary of 200,000."""
        try:
            self._tables()
        except InvalidRequest as refusal:
            log.warning("schemas_not_served", detail=refusal.message)

    def guide(self, schema: str, forced: tuple[int, ...]) -> Guide:
        """Return a guide that has taken ``forced``; raises ``InvalidRequest`` when the schema cannot be followed."""
        tokenizer = self._tables()
        try:
            grammar = grammar_of(schema)
            problem = LLMatcher.validate_grammar(grammar, tokenizer)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise InvalidRequest(_FIELD, f"cannot be compiled: {problem[:200]}")
        guide = Guide(LLMatcher(tokenizer, grammar), tokenizer.vocab_size)
        if not all(guide.advance(token) for token in forced):
            raise InvalidRequest(_FIELD, "does not allow what was delivered already")
        return guide

    def _tables(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = LLTokenizer(
                        self._tokenizer_json.decode(), eos_token=list(self._stop_token_ids) or None
                    )
                except ValueError as error:
                    raise InvalidRequest(_FIELD, f"is not served: {error}") from error
            return self._tokenizer
