"""Templates, detokenisation and stop strings of the gateway."""

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway.detokenizer import Detokenizer, StopStrings
from octavo_gateway.openai import Ask, Kind, Turn, parse
from octavo_gateway.text import BaseText
from octavo_shared.errors import ContextExceeded, InvalidRequest
from octavo_shared.messages.generation import Sampling
from support.fakes import BASE, CONTEXT_TOKENS, tiny_manifest, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
THREADS = ThreadPoolExecutor(1)
TEXT = BaseText(tiny_manifest(TOKENIZER), TOKENIZER.to_str().encode(), THREADS)


def ask(prompt: tuple[Turn, ...] | str | tuple[int, ...], max_tokens: int | None = None) -> Ask:
    kind = Kind.CHAT if prompt and isinstance(prompt[0], Turn) else Kind.COMPLETION
    return Ask(kind, "a/b", prompt, max_tokens, "max_tokens", Sampling(max_tokens or 0, 1))


def with_template(template: str) -> BaseText:
    manifest = msgspec.structs.replace(TEXT.manifest, chat_template=template)
    return BaseText(manifest, TOKENIZER.to_str().encode(), THREADS)


def test_template_trims_blocks_as_transformers_does() -> None:
    assert TEXT.render((Turn("user", "hi"),)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_template_that_writes_bos_gets_no_second_one() -> None:
    text = with_template("{{ bos_token }}{{ messages[0].content }}")
    assert text.encode(ask((Turn("user", "hi"),))).count(0) == 1


def test_plain_prompt_gets_its_special_tokens() -> None:
    assert TEXT.encode(ask("hi"))[0] == 0
    assert 0 not in TEXT.encode(ask((Turn("user", "hi"),)))


def test_template_that_raises_is_the_callers_error() -> None:
    text = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        text.render((Turn("user", "hi"),))


@pytest.mark.parametrize(
    "template", ["{{ ''.__class__.__mro__ }}", "{% set _ = messages.append(1) %}", "{{ messages[9].content.x }}"]
)
def test_template_cannot_leave_its_sandbox(template: str) -> None:
    with pytest.raises(InvalidRequest):
        with_template(template).render((Turn("user", "hi"),))


def test_template_features_of_transformers_work() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}"
    )
    assert with_template(template).render((Turn("user", "<é>"), Turn("user", "b"))) == '"<é>"'


def test_base_without_template_serves_no_conversation() -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        with_template("").render((Turn("user", "hi"),))


def test_prompt_that_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextExceeded) as refusal:
        TEXT.max_tokens(ask("x"), CONTEXT_TOKENS, CONTEXT_TOKENS)
    assert refusal.value.fields["prompt_tokens"] == refusal.value.fields["context_tokens"] == CONTEXT_TOKENS
    assert refusal.value.fields["field"] == "prompt"
    with pytest.raises(ContextExceeded) as refusal:
        TEXT.max_tokens(ask("x", max_tokens=CONTEXT_TOKENS), 1, CONTEXT_TOKENS)
    assert refusal.value.fields["field"] == "max_tokens"


def test_max_tokens_defaults_to_what_fits() -> None:
    assert TEXT.max_tokens(ask("x"), 48, CONTEXT_TOKENS) == CONTEXT_TOKENS - 48


def test_foreign_token_id_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        TEXT.encode(ask((1, 1_000_000)))


async def test_long_prompt_is_tokenised_like_a_short_one() -> None:
    prompt = "hello world " * 1000
    assert await TEXT.tokenise(ask(prompt)) == TEXT.encode(ask(prompt))


@given(st.text(max_size=60), st.randoms(use_true_random=False))
def test_pieces_join_to_the_whole_text_and_never_split_a_character(text: str, rng: random.Random) -> None:
    tokens = TOKENIZER.encode(text, add_special_tokens=False).ids
    detokenizer, pieces = Detokenizer(TOKENIZER), []
    while tokens:
        cut = rng.randint(1, 4)
        pieces.append(detokenizer.push(tokens[:cut]))
        tokens = tokens[cut:]
    whole = "".join(pieces) + detokenizer.flush()
    assert whole == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(3, 258), max_size=80))
def test_any_tokens_give_the_text_that_decoding_at_once_gives_up_to_broken_bytes(tokens: list[int]) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    whole = "".join(detokenizer.push([token]) for token in tokens) + detokenizer.flush()
    assert whole.replace("\ufffd", "") == TOKENIZER.decode(tokens).replace("\ufffd", "")


def test_bytes_that_never_become_a_character_are_not_held_forever() -> None:
    broken = TOKENIZER.encode("é", add_special_tokens=False).ids[:1]
    detokenizer = Detokenizer(TOKENIZER)
    assert "\ufffd" in detokenizer.push(broken * 40)


def test_special_tokens_are_not_shown() -> None:
    assert Detokenizer(TOKENIZER).push([1, *TOKENIZER.encode("hi", add_special_tokens=False).ids, 2]) == "hi"


@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_stop_string_is_found_however_the_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, shown, rest = StopStrings(tuple(stops)), "", text
    while rest and not matcher.is_found:
        cut = data.draw(st.integers(1, len(rest)))
        shown += matcher.push(rest[:cut])
        # What was shown is never taken back, and never holds a stop string.
        assert text.startswith(shown)
        rest = rest[cut:]
    places = [text.find(stop) for stop in stops if stop in text]
    if not matcher.is_found:
        shown += matcher.flush()
    if not places or len(stops) == 1:
        assert shown == (text[: min(places)] if places else text)
    assert matcher.is_found == bool(places)
    assert not any(stop in shown for stop in stops)


@pytest.mark.parametrize("messages", [1, 200])
async def test_a_long_prompt_leaves_the_event_loop_free(messages: int) -> None:
    raw = {"model": "m", "messages": [{"role": "user", "content": "word " * (60_000 // messages)}] * messages}
    ask = parse(json.dumps(raw).encode(), Kind.CHAT)
    num_turns = 0
    tokenising = asyncio.create_task(TEXT.tokenise(ask))
    while not tokenising.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    assert len(await tokenising) > 60_000
    assert num_turns > 10, "the loop did not turn while the prompt was encoded"


def test_base_text_knows_its_fingerprint() -> None:
    assert TEXT.manifest.fingerprint == BASE
