"""``octavo demo`` as a newcomer runs it. The first time on a machine it also trains the two adapters."""

import asyncio

from support.command_line import interrupt, octavo, read_until

TRAINED_S = 300.0
"""Until both adapters are there; most of it is their training, the first time on a machine."""
DEMO_S = 200.0
"""From then on."""
CLAIMS = (
    "each found ready by its probe",
    "alice/diary belongs to alice@alice",
    "the three streams ran in one batch",
    "it was found cold, in S3 only",
    "all three answers are the same 404",
    "chunks carried the same text as over HTTP",
    "four processes share one trace id",
    "no process is left behind",
)


async def test_the_demo_keeps_every_promise() -> None:
    # A wide terminal, so that no claim is folded.
    async with octavo("demo", COLUMNS="200") as child:
        said = await read_until(child, "bob's adapter is trained", TRAINED_S)
        assert child.stdout is not None
        async with asyncio.timeout(DEMO_S):
            said += (await child.stdout.read()).decode()
            await child.wait()
    assert child.returncode == 0, said
    assert "✗" not in said
    assert [claim for claim in CLAIMS if claim not in said] == []
    tree = said[said.index("\ntrace ") :]
    parts = ("gateway chat", "identity.resolve", "residency.place", "worker.generate", "s3.read", "prefill", "decode")
    assert [part for part in parts if part not in tree] == []


async def test_ctrl_c_in_the_middle_of_the_demo_leaves_no_process() -> None:
    async with octavo("demo", COLUMNS="200") as child:
        await read_until(child, "belongs to alice@alice", TRAINED_S)
        left, rest = await interrupt(child, num_times=4)
    assert left == [], rest
    assert child.returncode == 130, rest
    assert "Traceback" not in rest
