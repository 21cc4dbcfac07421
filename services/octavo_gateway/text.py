"""A base's tokenizer and chat template, from its manifest in S3; no weights and no torch."""

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from octavo_gateway.call import Echo
from octavo_gateway.openai import Ask, Turn
from octavo_shared.errors import ContextExceeded, DependencyUnavailable, InvalidRequest, Overloaded
from octavo_shared.guidance import grammar_of
from octavo_shared.manifest import BaseManifest, fetch_base
from octavo_shared.objects import ObjectStore
from octavo_shared.references import Fingerprint

_INLINE_CHARS_MAX = 4096
_TURN_CHARS = 32
"""What a turn's own tokens cost in the template, so that many empty turns are not taken for nothing."""
_THREADS_MAX = 2
_TOKENISE_TIMEOUT_S = 10.0
_BUSY_RETRY_AFTER_S = 2
_BASES_MAX = 8
_SCHEMA_FIELD = "response_format"
_PROBLEM_CHARS_MAX = 300
_FETCH_TIMEOUT_S = 25.0


class _GenerationTag(Extension):
    """``{% generation %}`` marks an assistant's words for training; here it only shows its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    # jinja2's own filter escapes HTML, which templates of language models do not want.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.now(UTC).strftime(form)


def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


class BaseText:
    """One base's way between text and tokens. Immutable once made, so ``threads`` share it."""

    def __init__(self, manifest: BaseManifest, tokenizer_json: bytes, threads: Executor) -> None:
        self.manifest = manifest
        self._threads = threads
        self.tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.num_vocabulary = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self._guide = LLTokenizer(tokenizer_json.decode(), n_vocab=self.num_vocabulary, eos_token=_eos(manifest))
        self._template = _compile(manifest.chat_template) if manifest.chat_template else None

    def render(self, turns: tuple[Turn, ...]) -> str:
        """Return the conversation in the base's own form; raises ``InvalidRequest`` when the template refuses it."""
        if self._template is None:
            raise InvalidRequest("messages", "cannot be served: the base has no chat template; use /v1/completions")
        messages = [
            {"role": turn.role, "content": turn.content} | ({"name": turn.name} if turn.name else {}) for turn in turns
        ]
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                bos_token=self.manifest.bos_token,
                eos_token=self.manifest.eos_token,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise InvalidRequest("messages", f"do not fit the base's chat template: {error}") from None

    def encode(self, ask: Ask) -> tuple[int, ...]:
        """Return the prompt's token ids. A template writes its special tokens itself; a plain text gets them here."""
        if isinstance(ask.prompt, str):
            return self._tokens_of(ask.prompt, has_special=True)
        turns = tuple(part for part in ask.prompt if isinstance(part, Turn))
        if turns:
            return self._tokens_of(self.render(turns), has_special=False)
        tokens = tuple(part for part in ask.prompt if isinstance(part, int))
        if not all(0 <= token < self.num_vocabulary for token in tokens):
            raise InvalidRequest("prompt", f"holds a token id outside 0 to {self.num_vocabulary - 1}")
        return tokens

    def _tokens_of(self, text: str, *, has_special: bool) -> tuple[int, ...]:
        # A batch of one: unlike ``encode``, it lets other threads have the interpreter meanwhile.
        return tuple(self.tokenizer.encode_batch([text], add_special_tokens=has_special)[0].ids)

    async def tokenise(self, ask: Ask) -> tuple[int, ...]:
        """``encode`` that leaves the event loop free: long prompts are encoded on a few threads, in turn.

        Raises ``Overloaded`` when their turn does not come in ``_TOKENISE_TIMEOUT_S``.
        """
        if _num_chars(ask) <= _INLINE_CHARS_MAX:
            return self.encode(ask)
        try:
            async with asyncio.timeout(_TOKENISE_TIMEOUT_S):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self.encode, ask)
        except TimeoutError:
            raise Overloaded(retry_after_s=_BUSY_RETRY_AFTER_S) from None

    def spelling(self, token: int) -> tuple[str, bytes | None]:
        """Return a token's text and its bytes, which may be a part of a character only; special ones have none."""
        if self._guide.is_special_token(token):
            return str(self.tokenizer.id_to_token(token) or ""), None
        raw = self._guide.decode_bytes([token])
        return raw.decode(errors="replace"), raw

    async def echo(self, ask: Ask, prompt: tuple[int, ...], logprobs: Sequence[float]) -> Echo:
        """Return the prompt as its caller sees it; ``logprobs`` are those of its tokens, but for the first."""

        def read() -> Echo:
            pieces = [self.spelling(token)[0] for token in prompt]
            if isinstance(ask.prompt, str):
                # A token that is no part of the text, like one that opens every text, is nowhere between 0 and 0.
                encoding = self.tokenizer.encode_batch([ask.prompt], add_special_tokens=True)[0]
                text, offsets = ask.prompt, tuple(begin for begin, _ in encoding.offsets)
            else:
                text = "".join(pieces)
                offsets = tuple(itertools.accumulate(map(len, pieces[:-1]), initial=0))
            return Echo(text, tuple(pieces), (None, *logprobs), offsets)

        if _num_chars(ask) <= _INLINE_CHARS_MAX:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def check_schema(self, schema: str) -> None:
        """Raise ``InvalidRequest`` when no answer could be guided by ``schema``; compiled on a thread."""

        def problem() -> str:
            return str(LLMatcher.validate_grammar(grammar_of(schema), self._guide))

        try:
            async with asyncio.timeout(_TOKENISE_TIMEOUT_S):
                found = await asyncio.get_running_loop().run_in_executor(self._threads, problem)
        except TimeoutError:
            raise Overloaded(retry_after_s=_BUSY_RETRY_AFTER_S) from None
        except ValueError as error:
            found = str(error)
        if found:
            raise InvalidRequest(_SCHEMA_FIELD, f"cannot be compiled: {found[:_PROBLEM_CHARS_MAX]}")

    @staticmethod
    def max_tokens(ask: Ask, num_prompt_tokens: int, context: int) -> int:
        """Return how many tokens may be generated within ``context`` tokens, prompt and answer together.

        Raises ``ContextExceeded`` naming the field that is too large.
        """
        if num_prompt_tokens == 0:
            raise InvalidRequest(ask.prompt_field, "has no tokens")
        wanted, least = ask.max_tokens, 0 if ask.sampling.is_scored else 1
        if num_prompt_tokens + max(wanted or 0, least) > context:
            is_prompt_at_fault = num_prompt_tokens + least > context
            raise ContextExceeded(
                ask.prompt_field if is_prompt_at_fault else ask.max_tokens_field,
                prompt_tokens=num_prompt_tokens,
                max_tokens=max(wanted or 0, least),
                context_tokens=context,
            )
        return wanted if wanted is not None else context - num_prompt_tokens


def _eos(manifest: BaseManifest) -> list[int] | None:
    return list(manifest.stop_token_ids) or None


def _num_chars(ask: Ask) -> int:
    if isinstance(ask.prompt, str):
        return len(ask.prompt)
    return sum(len(part.content) + _TURN_CHARS if isinstance(part, Turn) else 1 for part in ask.prompt)


class TextStore:
    """The texts of the bases in the fleet; fetched once each, however many requests ask at the same time."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="tokenise")
        self._known: dict[Fingerprint, BaseText] = {}
        self._fetching: dict[Fingerprint, asyncio.Task[BaseText]] = {}

    def known(self, base: Fingerprint) -> BaseText | None:
        return self._known.get(base)

    async def get(self, base: Fingerprint) -> BaseText:
        """Return the base's text; raises ``DependencyUnavailable`` when it is not known yet and cannot be read."""
        if (text := self._known.get(base)) is not None:
            return text
        task = self._fetching.get(base)
        if task is None:
            task = asyncio.create_task(self._fetch(base), name="fetch base text")
            self._fetching[base] = task
            task.add_done_callback(self._forget(base))
        # One caller that goes away must not take the fetch from the others.
        return await asyncio.shield(task)

    def _forget(self, base: Fingerprint) -> Callable[[asyncio.Task[BaseText]], None]:
        def done(task: asyncio.Task[BaseText]) -> None:
            self._fetching.pop(base, None)
            if not task.cancelled():
                task.exception()  # Retrieved: callers that waited have it; nobody may be left.

        return done

    async def _fetch(self, base: Fingerprint) -> BaseText:
        try:
            async with asyncio.timeout(_FETCH_TIMEOUT_S):
                found = await fetch_base(self._store, base)
        except TimeoutError as error:
            raise DependencyUnavailable("object storage") from error
        if found is None:
            raise DependencyUnavailable("the base's manifest")
        text = await asyncio.to_thread(BaseText, *found, self._threads)
        while len(self._known) >= _BASES_MAX:
            del self._known[next(iter(self._known))]
        self._known[base] = text
        return text
