"""Suites and scores: what is read from a file, what an answer is worth, and which line a broken suite is told by."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_cli.answers import ClientError
from octavo_cli.evaluation_commands import rules_of
from octavo_cli.scoring import Result, SlowPattern, judge, likelihood, scores_of
from octavo_cli.suite import Check, Line, load_suite, suite_digest
from octavo_shared.messages.evaluation import Metric, Rule, Score

GOOD = '{"prompt": "2 + 2 =", "expect": "4"}'


def write(folder: Path, *lines: str) -> Path:
    path = folder / "My Facts.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_a_suite_is_its_lines_its_name_and_the_digest_of_its_bytes(tmp_path: Path) -> None:
    chat = {
        "messages": [{"role": "user", "content": "hi"}], "expect": "^h", "check": "regex", "max_tokens": 5,
    }  # fmt: skip
    suite = load_suite(write(tmp_path, GOOD, "", json.dumps(chat), ""))
    assert (suite.name, [item.number for item in suite.items]) == ("my-facts", [1, 3])
    assert [item.line.check for item in suite.items] == [Check.EXACT, Check.REGEX]
    assert (suite.items[0].line.max_tokens, suite.items[1].line.max_tokens) == (64, 5)
    assert suite.digest == suite_digest(tmp_path / "My Facts.jsonl")
    write(tmp_path, GOOD, json.dumps(chat))
    assert suite_digest(tmp_path / "My Facts.jsonl") != suite.digest


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"prompt": "x"}', "missing required field `expect`"),
        ('{"expect": "x"}', "either 'prompt' or 'messages'"),
        ('{"prompt": "x", "messages": [{"role": "user", "content": "x"}], "expect": "x"}', "either"),
        ('{"messages": [], "expect": "x"}', "is empty"),
        ('{"prompt": "", "expect": "x"}', "is empty"),
        ('{"prompt": "x", "expect": ""}', "'expect' must have"),
        ('{"prompt": "x", "expect": "x", "check": "fuzzy"}', "fuzzy"),
        ('{"prompt": "x", "expect": "x", "weight": 2}', "unknown field `weight`"),
        ('{"prompt": "x", "expect": "x", "max_tokens": 0}', ">= 1"),
        ('{"prompt": "x", "expect": "(", "check": "regex"}', "no pattern"),
        ('{"messages": [{"role": "user", "content": "x"}], "expect": "x", "check": "perplexity"}', "continues"),
        ('{"prompt": "\\ud800", "expect": "x"}', ""),
        ("[" * 100_000, ""),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ClientError) as refused:
        load_suite(write(tmp_path, GOOD, line, GOOD))
    assert refused.value.code == "bad_suite"
    assert "line 2: " in refused.value.message
    assert problem in refused.value.message


def test_a_suite_without_items_and_one_without_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="holds no items"):
        load_suite(write(tmp_path, "", " "))
    nameless = tmp_path / "§.jsonl"
    nameless.write_text(GOOD)
    with pytest.raises(ClientError, match="--name"):
        load_suite(nameless)
    assert load_suite(nameless, "law").name == "law"


@pytest.mark.parametrize(
    ("check", "expect", "answer", "is_passed"),
    [
        (Check.EXACT, "four", " four\n", True),
        (Check.EXACT, "four", "four.", False),
        (Check.CONTAINS, "four", "it is four.", True),
        (Check.CONTAINS, "four", "FOUR", False),
        (Check.REGEX, r"(?i)^it is \w+\.?$", "It is four.", True),
        (Check.REGEX, r"^\d+$", "four", False),
    ],
)
def test_an_answer_is_judged_as_its_line_wants(check: Check, expect: str, answer: str, is_passed: bool) -> None:
    assert judge(Line(expect, check, prompt="x"), answer) == Result(check, is_passed)


def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    with pytest.raises(SlowPattern):
        judge(Line(r"(a|aa)+$", Check.REGEX, prompt="x"), "a" * 60 + "b")


def test_tokens_behind_the_prompt_are_read_and_one_across_its_end_too() -> None:
    # "ab" + "cd", as tokens a, bc, d.
    read = likelihood("ab", [None, -1.0, -2.0], [0, 1, 3])
    assert (read.logprob, read.num_tokens) == (-3.0, 2)
    assert likelihood("", [None, -1.0], [0, 1]).num_tokens == 1


@given(st.lists(st.tuples(st.sampled_from([Check.EXACT, Check.CONTAINS, Check.REGEX]), st.booleans()), min_size=1))
def test_scores_are_shares_of_each_check_and_of_all(found: list[tuple[Check, bool]]) -> None:
    scores = {score.metric: score for score in scores_of([Result(*one) for one in found])}
    assert scores[Metric.PASSED] == Score(Metric.PASSED, sum(is_passed for _, is_passed in found) / len(found),
                                          len(found))  # fmt: skip
    by_check = [score for metric, score in scores.items() if metric is not Metric.PASSED]
    assert {score.metric.value for score in by_check} == {check.value for check, _ in found}
    assert sum(score.num_items for score in by_check) == len(found)
    assert math.isclose(
        sum(score.value * score.num_items for score in by_check), sum(is_passed for _, is_passed in found), abs_tol=1e-9
    )


@given(st.lists(st.tuples(st.floats(-1e4, 0), st.integers(1, 50)), min_size=1, max_size=20))
def test_a_perplexity_is_over_all_tokens_and_at_least_one(found: list[tuple[float, int]]) -> None:
    [score] = scores_of([Result(Check.PERPLEXITY, False, logprob, num) for logprob, num in found])
    mean = sum(logprob for logprob, _ in found) / sum(num for _, num in found)
    assert score.metric is Metric.PERPLEXITY
    assert score.num_items == len(found)
    assert 1.0 <= score.value < math.inf
    assert math.isclose(math.log(score.value), min(700.0, -mean), rel_tol=1e-9, abs_tol=1e-9)


def test_what_cannot_be_scored_has_no_score() -> None:
    assert scores_of([Result(Check.PERPLEXITY)]) == ()


def test_a_gate_is_spelt_with_files_whose_digests_it_pins(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    pinned = "sha256:" + "a" * 64
    rules = rules_of([f"exact:{path}:0.8", f"perplexity:law@{pinned}:20"], [f"exact:{path}:0.02"])
    assert rules == (
        Rule(Metric.EXACT, "my-facts", suite_digest(path), 0.8, 0.02),
        Rule(Metric.PERPLEXITY, "law", pinned, 20.0),  # type: ignore[arg-type]
    )
    for wrong in ("exact", "exact:0.8", f"fuzzy:{path}:0.8", f"exact:{path}:much", "exact:nowhere.jsonl:0.8"):
        with pytest.raises(ClientError, match="--require must have the form"):
            rules_of([wrong], [])
    with pytest.raises(ClientError, match="twice"):
        rules_of([f"exact:{path}:0.8", f"exact:{path}:0.9"], [])
