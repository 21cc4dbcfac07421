"""Bodies of the OpenAI API: what is served, what is neutral, and what is refused by the name of its field."""

import json
from typing import get_type_hints

import msgspec
import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from octavo_gateway.openai import Ask, Kind, Turn, parse
from octavo_gateway.openai_fields import CHAT_NEUTRAL, COMPLETION_NEUTRAL, ChatBody, CompletionBody
from octavo_gateway.openai_sampling import complete
from octavo_shared.errors import InvalidRequest, UnsupportedParameter
from octavo_shared.messages.generation import Sampling

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: object) -> Ask:
    return parse(json.dumps({"model": "alice/diary", "messages": HI} | fields).encode(), Kind.CHAT)


def completion(**fields: object) -> Ask:
    return parse(json.dumps({"model": "alice/diary", "prompt": "hi"} | fields).encode(), Kind.COMPLETION)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": HI * 4_097}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 4_097}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "hi", "mood": "good"}]}, "messages[0].mood"),
        ({"model": 5}, "model"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "lucky"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_all": True}}, "stream_options.include_all"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"min_p": 1.1}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": False}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-5": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "b" * 65_536}}}},
            "response_format.json_schema.schema",
        ),
        ({"metadata": {"a": 1}}, "metadata[...]"),
    ],
)
def test_bad_field_is_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        chat(**fields)
    assert refusal.value.fields["field"] == named
    assert refusal.value.http_status == 400


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (b"", "model"),
        (b"{", "body"),
        (b"[]", "body"),
        (b'"\xff"', "body"),
        (b'{"model": "\\ud800", "messages": []}', "body"),
        (b"[" * 100_000, "body"),
        (b'{"messages": []}', "model"),
        (b'{"model": "a/b"}', "messages"),
    ],
)
def test_malformed_body_is_refused(raw: bytes, named: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(raw, Kind.CHAT)
    assert refusal.value.fields["field"] == named


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("audio", {"voice": "alloy"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content"}),
        ("store", True),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("service_tier", "priority"),
        ("web_search_options", {}),
    ],
)
def test_unserved_parameter_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        chat(**{name: value})
    assert refusal.value.fields["field"] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("best_of", 2), ("echo", True), ("suffix", "x")],
)
def test_unserved_completion_parameter_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        completion(**{name: value})
    assert refusal.value.fields["field"] == name


def test_echo_is_served_for_the_prompts_own_logprobs_and_for_nothing_else() -> None:
    scored: dict[str, object] = {"echo": True, "max_tokens": 0, "logprobs": 0}
    ask = completion(**scored)
    assert (ask.sampling.is_scored, ask.sampling.max_tokens, ask.is_stream) == (True, 0, False)
    raw = json.dumps({"model": "m", "prompt": "hi"} | scored).encode()
    assert not parse(raw, None, is_stream_default=True).is_stream
    for fields, named in [
        ({"max_tokens": 1}, "echo"), ({"logprobs": 1}, "logprobs"), ({"logprobs": None}, "logprobs"),
        ({"stream": True}, "stream"), ({"n": 2}, "n"),
    ]:  # fmt: skip
        with pytest.raises(UnsupportedParameter) as refusal:
            completion(**scored | fields)
        assert refusal.value.fields["field"] == named
    assert not completion(echo=False).sampling.is_scored
    with pytest.raises(InvalidRequest):
        completion(max_tokens=0)


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "tool", "content": "x", "tool_call_id": "1"}, "messages[0].role"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages[0].tool_calls"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
    ],
)
def test_unserved_message_is_refused_by_name(message: dict[str, object], named: str) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        chat(messages=[message])
    assert refusal.value.fields["field"] == named


def test_values_that_ask_for_nothing_are_accepted() -> None:
    neutral = {name: values[0] for name, values in CHAT_NEUTRAL.items() if values}
    ask = chat(**neutral, user="u", metadata={"a": "b"}, seed=7, stop=None, stream=None)
    assert ask.sampling.seed == 7
    assert not ask.is_stream


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ChatBody, chat_params.CompletionCreateParamsStreaming),
        (CompletionBody, completion_params.CompletionCreateParamsStreaming),
    ],
)
def test_every_parameter_that_openai_knows_has_a_name_here(ours: type[msgspec.Struct], theirs: type) -> None:
    known = {field.name for field in msgspec.structs.fields(ours)}
    assert set(get_type_hints(theirs)) <= known


def test_parameters_that_are_typed_loosely_are_all_checked() -> None:
    for body, neutral in ((ChatBody, CHAT_NEUTRAL), (CompletionBody, COMPLETION_NEUTRAL)):
        loose = {field.name for field in msgspec.structs.fields(body) if field.type is object}
        assert loose == set(neutral)


def test_ask_without_seed_gets_one_and_negative_seeds_are_folded() -> None:
    assert 0 <= chat().sampling.seed < 2**63
    assert chat(seed=-1).sampling.seed == 2**63 - 1


def test_parts_of_a_message_are_joined_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    ask = chat(messages=[{"role": "developer", "content": parts}])
    assert ask.prompt == (Turn("system", "ab"),)


@pytest.mark.parametrize(("prompt", "parsed"), [("a", "a"), (["a"], "a"), ([1, 2], (1, 2))])
def test_completion_prompt_is_a_text_or_tokens(prompt: object, parsed: object) -> None:
    assert completion(prompt=prompt).prompt == parsed


@pytest.mark.parametrize("prompt", [[], ["a", "b"], ["a", 1]])
def test_completion_takes_one_prompt_only(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        completion(prompt=prompt)
    assert refusal.value.fields["field"] == "prompt"


def test_kind_follows_from_the_body_where_there_is_no_route() -> None:
    assert parse(b'{"model": "a/b", "prompt": "x"}', None).kind is Kind.COMPLETION
    assert parse(json.dumps({"model": "a/b", "messages": HI}).encode(), None).kind is Kind.CHAT


@pytest.mark.parametrize("fields", [{"store": 0}, {"parallel_tool_calls": 1}])
def test_a_wrong_type_is_not_neutral_for_being_equal_in_python(fields: dict[str, object]) -> None:
    with pytest.raises(UnsupportedParameter) as refused:
        chat(**fields)
    assert refused.value.fields["field"] == next(iter(fields))


def test_sampling_carries_every_wish() -> None:
    ask = chat(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=1, frequency_penalty=-1, n=3,
        repetition_penalty=1.1, logit_bias={"9": 2, "5": -100}, min_tokens=2, max_tokens=8, seed=4,
        logprobs=True, top_logprobs=3, ignore_eos=True,
    )  # fmt: skip
    assert ask.sampling == Sampling(
        max_tokens=8, seed=4, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.1, logit_bias=((5, -100), (9, 2)), min_tokens=2, num_logprobs=3,
    )  # fmt: skip
    assert (ask.num_choices, ask.is_eos_ignored) == (3, True)
    assert chat(top_k=-1).sampling.top_k == 0
    assert chat(logprobs=False).sampling.num_logprobs == -1
    assert completion(logprobs=0).sampling.num_logprobs == 0


def test_a_schema_travels_as_it_was_written_and_any_object_is_a_schema_too() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert json.loads(chat(response_format=wanted).sampling.schema) == schema
    assert json.loads(chat(response_format={"type": "json_object"}).sampling.schema) == {"type": "object"}
    assert chat(response_format={"type": "text"}).sampling.schema == ""


def test_a_bias_for_a_token_that_the_base_has_not_is_refused() -> None:
    ask = chat(logit_bias={"320": 1})
    assert complete(ask.sampling, 5, (2,), 321).stop_token_ids == (2,)
    with pytest.raises(InvalidRequest) as refused:
        complete(ask.sampling, 5, (2,), 320)
    assert refused.value.fields["field"] == "logit_bias"
