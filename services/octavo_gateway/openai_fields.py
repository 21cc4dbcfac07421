"""Every field that OpenAI's two endpoints know. Those that Octavo does not serve are ``object`` here, and neutral
values of them, which ask for nothing, are listed below; any other value is refused by name.
"""

from typing import Literal

import msgspec


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Part(msgspec.Struct, frozen=True):
    """One part of a message; only text is served."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: object = None
    annotations: object = None
    audio: object = None
    function_call: object = None
    tool_call_id: object = None
    tool_calls: object = None


class JsonSchema(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``schema`` is compiled by the library that guides decoding, and looked at by nobody else."""

    name: str
    schema: dict[str, object] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: str
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    presence_penalty: float | None = None
    # Not OpenAI's, but what users of other servers send beside them.
    ignore_eos: bool | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    top_k: int | None = None


class ChatBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message]
    max_completion_tokens: int | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    audio: object = None
    function_call: object = None
    functions: object = None
    modalities: object = None
    moderation: object = None
    parallel_tool_calls: object = None
    prediction: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None
    reasoning_effort: object = None
    service_tier: object = None
    store: object = None
    tool_choice: object = None
    tools: object = None
    verbosity: object = None
    web_search_options: object = None


class CompletionBody(_Common, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[str | int]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: object = None
    suffix: object = None


CHAT_NEUTRAL: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    # Without tools there is nothing to choose from or to call in parallel.
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "prediction": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "web_search_options": (),
}
COMPLETION_NEUTRAL: dict[str, tuple[object, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
}
MESSAGE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
