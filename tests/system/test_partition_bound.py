"""How late a revocation may be for those who reach only a leader that is cut off: real servers, a real partition."""

from pathlib import Path

from chaos.partition import BOUND_S, Fault, run


async def test_a_leader_that_is_cut_off_lets_a_revoked_key_through_for_no_longer_than_the_stated_bound(
    tmp_path: Path,
) -> None:
    """The README states the bound; ``make chaos-partition`` measures how near to it one comes."""
    cut_off, suspended = await run(tmp_path, [Fault.CUT_OFF, Fault.SUSPENDED], print)
    for trial in (cut_off, suspended):
        assert trial.late_s <= BOUND_S, trial
        # Whoever reaches the others is held up by the election and by nothing else.
        assert trial.elected_s <= BOUND_S, trial
        assert trial.healed_s <= BOUND_S, trial
        assert trial.elected_s > 1.0, "without a fault there is no election, and nothing was measured"
    assert cut_off.num_good > 0, "whoever is cut off goes on for a while, or else the reads did not go there"
