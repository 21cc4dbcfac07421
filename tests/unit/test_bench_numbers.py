"""Numbers that make no sense are refused in one line, before a command starts anything."""

import pytest

from bench import engine, peers
from bench import registry as bench_registry
from chaos import partition
from chaos import registry as chaos_registry

COMMANDS = [
    (engine, "--rounds", "0", "must be a whole number from 1 on, not '0'"),
    (peers, "--rounds", "-1", "must be a whole number from 1 on, not '-1'"),
    (chaos_registry, "--operations", "-3", "must be a whole number from 1 on, not '-3'"),
    (chaos_registry, "--faults", "many", "must be a whole number from 1 on, not 'many'"),
    (partition, "--trials", "0", "must be a whole number from 1 on, not '0'"),
    (bench_registry, "--adapters", "1e6", "must be a whole number from 1 on, not '1e6'"),
    (bench_registry, "--seconds", "-1", "must be a number of seconds above 0, not '-1'"),
    (bench_registry, "--seconds", "nan", "must be a number of seconds above 0, not 'nan'"),
    (bench_registry, "--seconds", "inf", "must be a number of seconds above 0, not 'inf'"),
]


@pytest.mark.parametrize(("command", "option", "value", "said"), COMMANDS)
def test_a_number_that_makes_no_sense_is_refused(
    command: object, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([option, value])  # type: ignore[attr-defined]
    assert ended.value.code == 2
    assert f"argument {option}: {said}" in capsys.readouterr().err
