"""What a writer does next. Pure, and seeded: the choices follow from a random stream and what the writer knows."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from chaos import history as h
from chaos.model import SERVING

ALIASES = (SERVING, "stable", "beta")
READERS = ("bob@away", "carol@away")
_TAGS = 12
_HOT_SHARE = 0.15
_LIVE_MIN = 4
_WEIGHTS = {
    "resolve": 14, "resolve_as_reader": 8, "tag": 24, "promote": 24, "rollback": 10, "grant": 6, "revoke": 6,
    "unalias": 2, "retire": 1, "push": 5,
}  # fmt: skip
"""Most are cheap verbs: a push costs several trips to the object store."""


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run. A few hot ones get a share of all calls, so that writers get in each other's way."""

    names: Sequence[str]
    num_hot: int

    def choose(self, random: Random) -> str:
        """Return the adapter of the next call."""
        if random.random() < _HOT_SHARE:
            return self.names[random.randrange(self.num_hot)]
        return random.choice(self.names)


def choose_call(random: Random, known: h.Snapshot, digests: Sequence[str]) -> h.Write | h.Resolve:
    """Return a call that makes sense for an adapter that was last seen as ``known``, which may be out of date.

    Pushed revisions have one of ``digests``.
    """
    verb = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    if known.num_revisions == 0:
        verb = "push"
    alias = random.choice(ALIASES)
    live = [number for number in range(max(1, known.num_revisions - 20), known.num_revisions + 1)
            if not any(first <= number <= last for first, last in known.retired)]  # fmt: skip
    number = random.choice(live) if live else known.num_revisions
    match verb:
        case "resolve":
            return h.Resolve(alias)
        case "resolve_as_reader":
            return h.Resolve(SERVING, random.choice(READERS))
        case "tag":
            first, second = random.sample(range(_TAGS), 2)
            return h.Tag((f"t{first}",), (f"t{second}",))
        case "promote":
            expected = known.aliases.get(alias, 0) if random.random() < 0.6 else None
            return h.Promote(alias, number, expected)
        case "rollback":
            return h.Rollback(alias, None if random.random() < 0.7 else number)
        case "grant":
            missing = [reader for reader in READERS if reader not in known.grants]
            return h.Grant(random.choice(missing or READERS))
        case "revoke":
            return h.Revoke(random.choice(known.grants or READERS))
        case "unalias":
            return h.Unalias(random.choice(ALIASES[1:]))
        case "retire":
            idle = [number for number in live if number not in known.aliases.values()]
            if len(live) > _LIVE_MIN and idle:
                return h.Retire(random.choice(idle))
            return h.Resolve(alias)
        case _:
            return h.Push(random.choice(digests), random.choice((SERVING, SERVING, "stable", None)))
