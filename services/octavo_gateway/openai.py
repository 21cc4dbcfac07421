"""OpenAI request bodies, chat and legacy completions, into an ``Ask``. Whatever asks for more is refused by name."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from octavo_gateway.bodies import decode_body
from octavo_gateway.openai_fields import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    MESSAGE_NEUTRAL,
    ChatBody,
    CompletionBody,
    Message,
    StreamOptions,
)
from octavo_shared.errors import InvalidRequest, UnsupportedParameter
from octavo_shared.messages.generation import Sampling

_PARTS_MAX = 4_096
"""Messages of a conversation, and parts of all its messages together."""
_STOPS_MAX = 4
_STOP_CHARS_MAX = 512
_SEED_MAX = 2**63
_COMPLETION_TOKENS_DEFAULT = 16
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_ROLES_REFUSED = ("tool", "function")


class Kind(StrEnum):
    """Which of the two OpenAI endpoints a body belongs to."""

    CHAT = "chat"
    COMPLETION = "text_completion"


@dataclass(frozen=True)
class Turn:
    """One message of a conversation, as the chat template sees it."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True)
class Ask:
    """What a caller wants. ``prompt`` is a conversation, a text, or token ids; ``max_tokens`` None: as many as fit."""

    kind: Kind
    model: str
    prompt: tuple[Turn, ...] | str | tuple[int, ...]
    max_tokens: int | None
    max_tokens_field: str
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    is_stream: bool
    has_usage: bool

    @property
    def prompt_field(self) -> str:
        return "messages" if self.kind is Kind.CHAT else "prompt"

    def sampling(self, max_tokens: int, stop_token_ids: tuple[int, ...]) -> Sampling:
        """Return the worker's form of this ask."""
        return Sampling(max_tokens, self.seed, self.temperature, self.top_p, stop_token_ids)


class _Probe(msgspec.Struct):
    messages: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def parse(raw: bytes, kind: Kind | None, *, is_stream_default: bool = False) -> Ask:
    """Return what the body ``raw`` asks for; ``kind`` None: chat when there are ``messages``.

    Raises ``InvalidRequest`` or ``UnsupportedParameter``, naming the first field that is at fault.
    """
    if kind is None:
        kind = Kind.COMPLETION if decode_body(raw, _Probe).messages is msgspec.UNSET else Kind.CHAT
    return _chat(raw, is_stream_default) if kind is Kind.CHAT else _completion(raw, is_stream_default)


def _chat(raw: bytes, is_stream_default: bool) -> Ask:
    body = decode_body(raw, ChatBody)
    _refuse(body, CHAT_NEUTRAL)
    if not body.messages:
        raise InvalidRequest("messages", "must hold at least one message")
    num_parts = sum(len(message.content) if isinstance(message.content, list) else 1 for message in body.messages)
    if max(len(body.messages), num_parts) > _PARTS_MAX:
        raise InvalidRequest("messages", f"may hold at most {_PARTS_MAX} messages and parts")
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequest("max_tokens", "and 'max_completion_tokens' exclude each other")
    field = "max_tokens" if body.max_tokens is not None else "max_completion_tokens"
    max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
    turns = tuple(_turn(index, message) for index, message in enumerate(body.messages))
    return _ask(Kind.CHAT, body, turns, max_tokens, field, is_stream_default)


def _completion(raw: bytes, is_stream_default: bool) -> Ask:
    body = decode_body(raw, CompletionBody)
    _refuse(body, COMPLETION_NEUTRAL)
    prompt: str | tuple[int, ...]
    if isinstance(body.prompt, str):
        prompt = body.prompt
    elif len(body.prompt) == 1 and isinstance(body.prompt[0], str):
        prompt = body.prompt[0]
    elif body.prompt and all(isinstance(token, int) for token in body.prompt):
        prompt = tuple(token for token in body.prompt if isinstance(token, int))
    else:
        raise InvalidRequest("prompt", "must be one text or one list of token ids")
    max_tokens = _COMPLETION_TOKENS_DEFAULT if body.max_tokens is None else body.max_tokens
    return _ask(Kind.COMPLETION, body, prompt, max_tokens, "max_tokens", is_stream_default)


def _ask(
    kind: Kind,
    body: ChatBody | CompletionBody,
    prompt: tuple[Turn, ...] | str | tuple[int, ...],
    max_tokens: int | None,
    max_tokens_field: str,
    is_stream_default: bool,
) -> Ask:
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    if max_tokens is not None and max_tokens < 1:
        raise InvalidRequest(max_tokens_field, "must be at least 1")
    if not 0.0 <= temperature <= 2.0:
        raise InvalidRequest("temperature", "must be between 0 and 2")
    if not 0.0 < top_p <= 1.0:
        raise InvalidRequest("top_p", "must be above 0 and at most 1")
    if body.seed is not None and not -_SEED_MAX <= body.seed < _SEED_MAX:
        raise InvalidRequest("seed", "must fit 64 bits")
    is_stream = is_stream_default if body.stream is None else body.stream
    options = body.stream_options
    if options is not None and not is_stream:
        raise InvalidRequest("stream_options", "needs 'stream': true")
    return Ask(
        kind=kind,
        model=body.model,
        prompt=prompt,
        max_tokens=max_tokens,
        max_tokens_field=max_tokens_field,
        temperature=temperature,
        top_p=top_p,
        # Every request has a seed, so that another attempt at it continues with the same noise.
        seed=secrets.randbits(63) if body.seed is None else body.seed % _SEED_MAX,
        stop=_stops(body.stop),
        is_stream=is_stream,
        has_usage=_has_usage(options),
    )


def _has_usage(options: StreamOptions | None) -> bool:
    if options is not None and options.include_obfuscation:
        raise UnsupportedParameter("stream_options.include_obfuscation")
    return bool(options is not None and options.include_usage)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > _STOPS_MAX:
        raise InvalidRequest("stop", f"may hold at most {_STOPS_MAX} strings")
    if not all(0 < len(text) <= _STOP_CHARS_MAX for text in stops):
        raise InvalidRequest("stop", f"must hold strings of 1 to {_STOP_CHARS_MAX} characters")
    return stops


def _turn(index: int, message: Message) -> Turn:
    at = f"messages[{index}]"
    if message.role in _ROLES_REFUSED:
        raise UnsupportedParameter(f"{at}.role", f"'{message.role}' is not supported")
    if message.role not in _ROLES:
        raise InvalidRequest(f"{at}.role", f"must be one of {', '.join(_ROLES)}")
    _refuse(message, MESSAGE_NEUTRAL, f"{at}.")
    if message.content is None:
        raise InvalidRequest(f"{at}.content", "is required")
    if isinstance(message.content, str):
        return Turn(_ROLES[message.role], message.content, message.name)
    texts = []
    for place, part in enumerate(message.content):
        if part.type != "text":
            raise UnsupportedParameter(f"{at}.content[{place}].type", "other than 'text' is not supported")
        if part.text is None:
            raise InvalidRequest(f"{at}.content[{place}].text", "is required")
        texts.append(part.text)
    return Turn(_ROLES[message.role], "".join(texts), message.name)


def _refuse(body: msgspec.Struct, neutral_values: Mapping[str, tuple[object, ...]], prefix: str = "") -> None:
    for name, harmless in neutral_values.items():
        value = getattr(body, name)
        if value is not None and not any(_is_same(value, neutral) for neutral in harmless):
            raise UnsupportedParameter(prefix + name)


def _is_same(value: object, neutral: object) -> bool:
    # To Python True is 1, to JSON it is not.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
