"""Scenario files: what they may say, and that every error names its field."""

from pathlib import Path

import pytest

from octavo_loadgen.scenario import Transport, parse_scenario, read_scenario, with_addresses
from octavo_loadgen.workload import targets_of
from octavo_shared.errors import InvalidRequest

ROOT = Path(__file__).parents[2]
GOOD = """
name = "t"
[load]
rate_per_s = 2
duration_s = 10.0
[[adapters]]
model = "alice/diary"
[[prompts]]
text = "hello"
"""


@pytest.mark.parametrize("path", sorted((ROOT / "loadgen" / "scenarios").glob("*.toml")), ids=lambda path: path.stem)
def test_scenarios_that_are_shipped_are_valid(path: Path) -> None:
    assert read_scenario(path).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("rate_per_s = 2", "rate_per_s = 0", "load.rate_per_s"),
        ("rate_per_s = 2", "rate_per_s = nan", "load.rate_per_s"),
        ("rate_per_s = 2", "", "load.rate_per_s"),
        ("rate_per_s = 2", 'rate_per_s = "2"', "load.rate_per_s"),
        ("duration_s = 10.0", "duration_s = 80000.0\nwarmup_s = 80000.0", "load.warmup_s"),
        ("rate_per_s = 2", "rate_per_s = 100_000.0", None),
        ("duration_s = 10.0", "duration_s = inf", "load.duration_s"),
        ("duration_s = 10.0", "duration_s = 10.0\nspeed = 1", "load.speed"),
        ('name = "t"', "", "name"),
        ('name = "t"', 'name = "t"\ncolour = 1', "colour"),
        ('name = "t"', 'name = "t"\ntransport = "smoke"', "transport"),
        ('name = "t"', 'name = "t"\nadapters = 3', "scenario"),
        ('text = "hello"', 'text = "hello"\n[[prompts]]\ntext = 1', "prompts[1].text"),
        ('text = "hello"', 'text = "hello"\nmax_tokens = 0', "prompts[0].max_tokens"),
        ('text = "hello"', 'text = "hello"\nmax_tokens = [9, 3]', "prompts[0].max_tokens"),
        ('text = "hello"', 'text = "hello"\n[popularity]\nkind = "fame"', "popularity.kind"),
        ('text = "hello"', 'text = "hello"\n[objectives]\nttft_ms = -1', "objectives.ttft_ms"),
        ('"alice/diary"', '"a/{i}"', "adapters[0].model"),
        ('"alice/diary"', '"alice/diary"\nnum = 2', "adapters[0].model"),
        ("[load]", "[load", "scenario"),
    ],
)
def test_error_names_the_field(old: str, new: str, field: str | None) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if field is None:
        parse_scenario(text)
        return
    with pytest.raises(InvalidRequest) as caught:
        parse_scenario(text)
    assert caught.value.fields["field"] == field
    assert f"'{field}'" in caught.value.message


def test_more_requests_than_the_limit_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'load.duration_s' gives more than"):
        parse_scenario(GOOD.replace("rate_per_s = 2", "rate_per_s = 100000").replace("10.0", "11.0"))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"nowhere\.toml' cannot be read"):
        read_scenario(tmp_path / "nowhere.toml")


def test_address_comes_from_the_call_then_the_file_then_the_environment() -> None:
    environ = {"OCTAVO_GATEWAY_URL": "http://environment:1"}
    bare = parse_scenario(GOOD)
    filed = parse_scenario('gateway_url = "http://file:1"\n' + GOOD)
    assert with_addresses(filed, environ, "http://call:1", "").gateway_url == "http://call:1"
    assert with_addresses(filed, environ, "", "").gateway_url == "http://file:1"
    assert with_addresses(bare, environ, "", "").gateway_url == "http://environment:1"
    with pytest.raises(InvalidRequest, match=r"'gateway_url' is required"):
        with_addresses(bare, {}, "", "")


@pytest.mark.parametrize("url", ["gateway:80", "nats://host:1", "http://", "http://host:port", "http://[1"])
def test_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match=r"'gateway_url' must be a URL"):
        with_addresses(parse_scenario(GOOD), {}, url, "")


def test_nats_transport_needs_only_the_address_of_nats() -> None:
    scenario = parse_scenario('transport = "nats"\n' + GOOD)
    assert scenario.transport is Transport.NATS
    assert with_addresses(scenario, {}, "", "nats://host:4222").nats_url == "nats://host:4222"
    environ = {"OCTAVO_NATS_SEED_FILE": "client.seed"}
    assert with_addresses(scenario, environ, "", "nats://host:4222").nats_seed_file == "client.seed"
    with pytest.raises(InvalidRequest, match=r"'nats_url' is required"):
        with_addresses(scenario, {}, "http://host:1", "")


def test_keys_come_from_the_file_or_the_environment_and_are_never_shown() -> None:
    text = GOOD.replace('"alice/diary"', '"alice/diary"\nkey = "oct_secret"\n[[adapters]]\nmodel = "b/{i}"\nnum = 2')
    scenario = parse_scenario(text)
    targets = targets_of(scenario.adapters, {"OCTAVO_KEY": "oct_other"})
    assert [(target.model, target.key) for target in targets] == [
        ("alice/diary", "oct_secret"),
        ("b/0", "oct_other"),
        ("b/1", "oct_other"),
    ]
    assert "oct_" not in repr(targets)
    assert "oct_" not in repr(scenario)


@pytest.mark.parametrize("environ", [{}, {"OCTAVO_KEY": ""}, {"OCTAVO_KEY": "oct_secret\n"}])
def test_missing_or_broken_key_names_its_variable_and_not_its_value(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="OCTAVO_KEY") as caught:
        targets_of(parse_scenario(GOOD).adapters, environ)
    assert caught.value.fields["field"] == "adapters[0].key"
    assert "secret" not in str(caught.value)
