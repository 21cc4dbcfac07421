"""OpenAI request bodies, chat and legacy completions, into an ``Ask``. Whatever asks for more is refused by name."""

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
from octavo_gateway.openai_sampling import check_range, sampling_of, schema_of
from octavo_shared.errors import InvalidRequest, UnsupportedParameter
from octavo_shared.messages.generation import Sampling

_PARTS_MAX = 4_096
"""Messages of a conversation, and parts of all its messages together."""
_STOPS_MAX = 4
_STOP_CHARS_MAX = 512
_CHOICES_MAX = 8
_TOP_LOGPROBS_MAX = 20
_LOGPROBS_MAX = 5
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
    """What a caller wants. ``prompt`` is a conversation, a text, or token ids; ``max_tokens`` None: as many as fit.

    ``sampling.is_scored``: the prompt comes back with its tokens' logprobs, and no answer.

    ``sampling`` is complete but for what only the base's text can tell: how many tokens fit, and which end an answer.
    """

    kind: Kind
    model: str
    prompt: tuple[Turn, ...] | str | tuple[int, ...]
    max_tokens: int | None
    max_tokens_field: str
    sampling: Sampling
    num_choices: int = 1
    stop: tuple[str, ...] = ()
    is_eos_ignored: bool = False
    is_stream: bool = False
    has_usage: bool = False

    @property
    def prompt_field(self) -> str:
        return "messages" if self.kind is Kind.CHAT else "prompt"


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
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs", "needs 'logprobs': true")
    num_logprobs = (body.top_logprobs or 0) if body.logprobs else None
    check_range("top_logprobs", num_logprobs, 0, _TOP_LOGPROBS_MAX)
    sampling = sampling_of(body, max_tokens, num_logprobs, schema_of(body.response_format))
    return _ask(Kind.CHAT, body, turns, max_tokens, field, sampling, is_stream_default)


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
    check_range("logprobs", body.logprobs, 0, _LOGPROBS_MAX)
    sampling = sampling_of(body, max_tokens, body.logprobs, "")
    if body.echo:
        _check_echo(body)
        sampling = msgspec.structs.replace(sampling, is_scored=True)
    return _ask(Kind.COMPLETION, body, prompt, max_tokens, "max_tokens", sampling, is_stream_default)


def _check_echo(body: CompletionBody) -> None:
    """Serve ``echo`` as what tells how likely a given text is, which is what it is used for."""
    if body.max_tokens != 0:
        raise UnsupportedParameter("echo", "is served with 'max_tokens': 0 only")
    if body.logprobs != 0:
        raise UnsupportedParameter("logprobs", "must be 0 with 'echo': the given tokens' alone are told")
    if body.stream:
        raise UnsupportedParameter("stream", "is not served with 'echo'")
    if body.n not in (None, 1):
        raise UnsupportedParameter("n", "must be 1 with 'echo'")


def _ask(
    kind: Kind,
    body: ChatBody | CompletionBody,
    prompt: tuple[Turn, ...] | str | tuple[int, ...],
    max_tokens: int | None,
    max_tokens_field: str,
    sampling: Sampling,
    is_stream_default: bool,
) -> Ask:
    if max_tokens is not None and max_tokens < 1 and not sampling.is_scored:
        raise InvalidRequest(max_tokens_field, "must be at least 1")
    num_choices = 1 if body.n is None else body.n
    if not 1 <= num_choices <= _CHOICES_MAX:
        raise InvalidRequest("n", f"must be between 1 and {_CHOICES_MAX}")
    is_stream = is_stream_default if body.stream is None else body.stream
    if sampling.is_scored:
        is_stream = False
    options = body.stream_options
    if options is not None and not is_stream:
        raise InvalidRequest("stream_options", "needs 'stream': true")
    return Ask(
        kind=kind,
        model=body.model,
        prompt=prompt,
        max_tokens=max_tokens,
        max_tokens_field=max_tokens_field,
        sampling=sampling,
        num_choices=num_choices,
        stop=_stops(body.stop),
        is_eos_ignored=bool(body.ignore_eos),
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
