"""Biases, penalties, minimum lengths and schemas: what they do to a row, and that they do it to that row alone."""

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.generation import Sampling
from octavo_shared.references import TenantId
from octavo_worker.engine.choosing import choose_tokens
from octavo_worker.engine.guides import Guide, Guides, allowed_next
from octavo_worker.engine.logits import adjusted, logprobs_of
from octavo_worker.engine.sequence import Sequence, SequenceRequest
from support.fakes import tiny_tokenizer

VOCAB = 8
TOKENIZER: Tokenizer = tiny_tokenizer()
END = TOKENIZER.token_to_id("<|im_end|>")


def sequence(prompt: tuple[int, ...] = (1,), answer: tuple[int, ...] = (), **fields: object) -> Sequence:
    sampling = Sampling(max_tokens=400, seed=0, **{"temperature": 0.0, **fields})  # type: ignore[arg-type]
    return Sequence(SequenceRequest("r", 0, TenantId("t"), prompt, answer, sampling), order=1)


def words_of(*guides: Guide) -> NDArray[np.int32]:
    allowed = allowed_next(guides)
    assert allowed is not None
    assert allowed.of_row.tolist() == list(range(len(guides)))
    return allowed.words


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_rows_that_want_nothing_changed_are_passed_on_as_they_are() -> None:
    logits = torch.randn(2, VOCAB)
    assert adjusted(logits, [sequence(), sequence(temperature=1.0, top_p=0.5)]) is logits


def test_each_change_is_the_one_that_is_documented() -> None:
    logits = row(1, -1, 2, 0, 0, 0, 0, 0)
    biased = adjusted(logits, [sequence(logit_bias=((0, 5.0), (3, -100.0)))])
    assert biased.tolist() == [[6, -1, 2, -100, 0, 0, 0, 0]]
    repeated = adjusted(logits, [sequence((0, 1, 1), (2,), repetition_penalty=2.0)])
    assert repeated.tolist() == [[0.5, -2, 1, 0, 0, 0, 0, 0]]
    counted = adjusted(logits, [sequence((0,), (2, 2, 3), presence_penalty=0.5, frequency_penalty=0.25)])
    assert counted.tolist() == [[1, -1, 1, -0.75, 0, 0, 0, 0]]
    early = adjusted(logits, [sequence(answer=(4,), min_tokens=2, stop_token_ids=(2,))])
    assert early[0, 2] == -torch.inf
    enough = adjusted(logits, [sequence(answer=(4, 4), min_tokens=2, stop_token_ids=(2,))])
    assert enough is logits
    assert logits.tolist() == [[1, -1, 2, 0, 0, 0, 0, 0]], "the model's own logits were changed"


def test_a_row_is_changed_the_same_alone_and_in_a_crowd() -> None:
    logits = torch.randn(3, VOCAB).bfloat16()
    crowd = [
        sequence(answer=(1, 2), frequency_penalty=1.0),
        sequence(logit_bias=((1, 3.0),)),
        sequence((4, 5), repetition_penalty=1.5),
    ]
    together = adjusted(logits, crowd)
    for i, one in enumerate(crowd):
        assert torch.equal(together[i], adjusted(logits[i : i + 1], [one])[0])


def test_logprobs_are_the_models_own() -> None:
    logits = torch.randn(2, VOCAB)
    asks = [sequence(num_logprobs=3, logit_bias=((5, 100.0),)), sequence()]
    chosen = choose_tokens(logits, asks)
    assert chosen.tokens[0] == 5
    assert chosen.logprobs[1] == ()
    (told,) = chosen.logprobs[0]
    expected = torch.log_softmax(logits[0], -1)
    assert told.chosen == pytest.approx(float(expected[5]))
    assert [token for token, _ in told.top] == expected.topk(3).indices.tolist()
    assert logprobs_of(logits, [Sampling(9, 0, num_logprobs=0)] * 2, [1, 2])[0][0].top == ()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(5))
def test_random_logits_guided_by_a_schema_give_json_that_satisfies_it(seed: int) -> None:
    guides = Guides(TOKENIZER.to_str().encode(), (END,))
    one = sequence(temperature=1.0, stop_token_ids=(END,))
    one.guide = guides.guide(json.dumps(SCHEMA), ())
    generator = torch.Generator().manual_seed(seed)
    answer: list[int] = []
    for _ in range(300):
        (token,) = choose_tokens(torch.randn(1, 400, generator=generator), [one]).tokens
        assert one.guide.advance(token)
        if token == END:
            break
        answer.append(token)
        one.tokens.append(token)
        if one.guide.is_complete:
            break
    value = json.loads(TOKENIZER.decode(answer))
    assert set(value) == {"name", "age"}
    assert isinstance(value["age"], int)
    assert len(value["name"]) <= 6


def test_a_guide_goes_on_behind_what_was_delivered_already() -> None:
    guides = Guides(TOKENIZER.to_str().encode(), (END,))
    forced = tuple(TOKENIZER.encode('{"name": "', add_special_tokens=False).ids)
    resumed, whole = guides.guide(json.dumps(SCHEMA), forced), guides.guide(json.dumps(SCHEMA), ())
    assert all(whole.advance(token) for token in forced)
    assert np.array_equal(*words_of(resumed, whole))
    with pytest.raises(InvalidRequest):
        guides.guide(json.dumps(SCHEMA), tuple(TOKENIZER.encode("[1]", add_special_tokens=False).ids))


@pytest.mark.parametrize("schema", ['{"type": "objectt"}', '{"not": {"type": "object"}}', "5", '{"type"'])
def test_a_schema_that_cannot_be_compiled_is_refused(schema: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Guides(TOKENIZER.to_str().encode(), (END,)).guide(schema, ())
    assert refused.value.fields["field"] == "response_format"


def test_a_guide_that_has_failed_changes_nothing_for_those_beside_it() -> None:
    guides = Guides(TOKENIZER.to_str().encode(), (END,))
    alone, beside, *failed = (guides.guide(json.dumps(SCHEMA), ()) for _ in range(4))
    forbidden = TOKENIZER.encode("[", add_special_tokens=False).ids[0]
    assert not any(guide.advance(forbidden) for guide in failed)
    assert np.array_equal(words_of(failed[0], beside, failed[1])[1], words_of(alone)[0])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_guided_row_follows_its_own_schema_and_no_other_row_follows_any(temperature: float) -> None:
    guides = Guides(TOKENIZER.to_str().encode(), (END,))
    crowd = [sequence(temperature=temperature) for _ in range(3)]
    crowd[0].guide, crowd[2].guide = guides.guide(json.dumps(SCHEMA), ()), guides.guide('{"type": "array"}', ())
    # What the schemas allow first is the least likely; the row between them is free to take the likeliest.
    logits = torch.zeros(3, 400)
    starts = [TOKENIZER.encode(text, add_special_tokens=False).ids[0] for text in "{["]
    logits[:, starts] = -20.0
    free = int(logits[1].argmax())
    logits[:, free] = 20.0
    chosen = choose_tokens(logits, crowd).tokens
    assert [TOKENIZER.id_to_token(chosen[i])[0] for i in (0, 2)] == ["{", "["]
    assert chosen[1] == free
    for i, one in enumerate(crowd):
        assert choose_tokens(logits[i : i + 1], [one]).tokens == [chosen[i]]


def test_where_nobody_has_a_schema_nothing_is_masked() -> None:
    assert allowed_next([None, None]) is None
