"""Patterns from users: what is matched as PEFT matches it, and what is refused before it costs anything."""

import contextlib
import re
import resource
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists

from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import LoraConfig, parse_lora_config
from octavo_shared.pack import build_pack
from octavo_shared.patterns import Matcher
from support.adapters import TINY_FINGERPRINT, q_proj_modules, tiny_tensors

MODULE = "model.layers.0.self_attn.q_proj"
BOMBS = [
    "((q{1000}){1000}){1000}",
    "(((((q{9}){9}){9}){9}){9}){9}",
    "(?:(?:[ab]?c){1000}){1000}",
    "((q+){1000}){1000}",
    "q{1000000000}",
    "q{5,1000000000}",
    "q{,1000000000}",
    "q{99999999999999999999999}",
    "q{999}" * 170,
    "(?:" + "q{10}" * 190 + "){100}",
    "(" * 500 + "a" + ")" * 500,
    "a" * 2000,
]


def rule_of(**fields: object) -> str:
    with pytest.raises(AdapterRefused) as refused:
        parse_lora_config({"r": 4, **fields}).targets(MODULE, Matcher())
    return str(refused.value.fields["rule"])


def test_patterns_that_would_fill_the_memory_are_refused_before_they_are_compiled() -> None:
    program = """
import sys
from octavo_shared.errors import AdapterRefused
from octavo_shared.lora_config import Matcher, parse_lora_config
for pattern in sys.argv[1:]:
    two = [pattern, "x" + pattern]
    for fields in ({"rank_pattern": dict.fromkeys(two, 1)}, {"alpha_pattern": dict.fromkeys(two, 1)},
                   {"target_modules": pattern}, {"target_modules": ["q"], "exclude_modules": pattern},
                   {"target_modules": ["q_proj"], "layers_to_transform": 1, "layers_pattern": two}):
        try:
            parse_lora_config(fields).targets("model.layers.0.self_attn.q_proj", Matcher())
        except AdapterRefused as refused:
            assert refused.fields["rule"] == "pattern", refused
            continue
        assert pattern.count("q{") > 100, (pattern, fields)
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    command = [sys.executable, "-c", program, *BOMBS]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def test_repeats_are_bounded_by_their_nesting_and_by_their_sum() -> None:
    for pattern in ("(q{30}){30}", "q{1000}", "(q{1000})*", "(?:q{500}|p{500}){2}", "q{999}" * 18):
        parse_lora_config({"rank_pattern": {pattern: 1}})
    for pattern in ("(q{40}){40}", "q{1001}", "(q{1000})*{2}", "(?:(?:q{500}|p{500})p){3}", "(?=(?:q{11}){11}){11}"):
        assert rule_of(rank_pattern={pattern: 1}) == "pattern"
    assert rule_of(rank_pattern={"q{999}" * 18: 1, "p{999}" * 18: 1}) == "pattern"


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:q_proj){e<=3}", "q{e}", "q{i<=1,d<=2}", "q{1<=e<=2}", "q{}", "q{,}", "q{ 1}", "q{a}", "{1}", "q}",
        r"\L<names>", "(?R)", "(?1)", "(?&a)", "(?|a|b)", "(?b:q)", "(?r)q", "(?V1)q", "(?P<a>q)", "(?P=a)", "(?#q)",
        "(?x) q", "(?(1)a|b)", "(*FAIL)", r"\p{L}", r"\X", r"\K", r"\G", r"\m", r"\R", r"\N{DIGIT ONE}", r"\1", r"\x71",
        "[[:alpha:]]", "[[a]", "[a||b]", "[a&&b]", "[a--b]", "[a~~b]", "[]a]", "[^]a]", "q\n", "é", "[é]",
        "(", ")", "a)|(b", "*", "a**", "[b-a]", "[", "\\", "(?<=a+)b",
    ],
)  # fmt: skip
def test_what_only_one_engine_reads_so_is_refused(pattern: str) -> None:
    assert rule_of(rank_pattern={pattern: 4}) == "pattern"
    assert rule_of(target_modules=pattern) == "pattern"


_PIECES = [
    *"aq_.0", "q_proj", ".*", ".+?", r"\.", r"\d+", r"\w", r"\b", "^", "$", r"\Z", "|", "(", "(?:", ")", "(?=", "(?!",
    "(?<!", "(?>", "(?i:", "(?i)", "{2}", "{1,3}", "{,2}", "{0,}", "[a-q]", "[^.]", "*", "+", "?", "*+", "layers",
]  # fmt: skip
_NAMES = ["a", "q_proj", "aa.0.q", "model.layers.0.self_attn.q_proj", "layers.10.a", "A.Q_PROJ"]


@settings(max_examples=3_000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=7).map("".join))
def test_a_pattern_that_is_not_refused_matches_as_in_peft(pattern: str) -> None:
    with contextlib.suppress(AdapterRefused):
        by_rank = parse_lora_config({"r": 1, "rank_pattern": {pattern: 2}})
        for name in _NAMES:
            expected = 2 if re.match(rf"(.*\.)?({pattern})$", name) else 1
            assert by_rank.rank_of(name, Matcher()) == expected
    with contextlib.suppress(AdapterRefused):
        by_target = parse_lora_config({"target_modules": pattern})
        for name in _NAMES:
            assert by_target.targets(name, Matcher()) == (re.fullmatch(pattern, name) is not None)


def test_a_pattern_that_would_run_for_ever_is_refused() -> None:
    config = LoraConfig(rank_pattern={"(a|aa)+b": 4})
    with pytest.raises(AdapterRefused, match="too long to match"):
        config.rank_of("a" * 64, Matcher())


def test_all_matching_of_an_adapter_shares_one_budget() -> None:
    slow = {f"(.|..)+[!?]{{{number}}}": 4 for number in range(1, 150)}
    given = {"r": 4, "target_modules": ["q_proj"], "rank_pattern": slow, "alpha_pattern": slow}
    matcher = Matcher(budget_s=0.3)
    config = parse_lora_config(given, matcher)
    begin_s = time.monotonic()
    for module in q_proj_modules():
        with pytest.raises(AdapterRefused, match="too long"):
            config.rank_of(module, matcher)
        with pytest.raises(AdapterRefused, match="too long"):
            config.scaling_of(module, 4, matcher)
        with pytest.raises(AdapterRefused, match="too long"):
            parse_lora_config(given, matcher)
    with pytest.raises(AdapterRefused, match="too long"):
        build_pack(config, tiny_tensors(q_proj_modules()), TINY_FINGERPRINT, None, matcher)
    assert time.monotonic() - begin_s < 2


def test_an_adapter_may_name_each_of_its_modules_in_a_pattern() -> None:
    names = [f"model.layers.{layer}.{side}_proj" for layer in range(300) for side in "qkvo"]
    matcher = Matcher()
    config = parse_lora_config({"rank_pattern": {name: index + 1 for index, name in enumerate(names)}}, matcher)
    assert [config.rank_of(name, matcher) for name in names] == list(range(1, len(names) + 1))


def test_layer_patterns_count_as_patterns_and_lists_of_names_are_bounded() -> None:
    several = {"target_modules": ["q_proj"], "layers_to_transform": [0]}
    assert rule_of(**several, layers_pattern=["h"] * 2_049) == "config"
    assert rule_of(**several, layers_pattern=["h"] * 1_025, rank_pattern={f"a{n}": 1 for n in range(1_024)}) == "config"
    for field in ("target_modules", "exclude_modules", "layers_to_transform"):
        assert rule_of(**several | {field: list(range(10_001))}) == "config"


@pytest.mark.parametrize(
    "patterns", [["layers", "experts"], ["experts", "layers"], ["x|layers"], ["layers|x"]], ids=str
)
def test_the_first_layer_pattern_that_matches_decides_as_in_peft(patterns: list[str]) -> None:
    module = "model.layers.1.mlp.experts.7.up_proj"
    for layer in (1, 7):
        given = {"target_modules": ["up_proj"], "layers_to_transform": [layer], "layers_pattern": patterns}
        expected = bool(check_target_module_exists(PeftConfig(**given), module))
        config = parse_lora_config(given)
        assert config.targets(module, Matcher()) == expected
        assert config.layers_pattern == tuple(patterns)
