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
    "unalias": 2, "retire": 1, "push": 5, "import": 1, "evaluate": 5,
}  # fmt: skip
"""Most are cheap verbs: a push costs several trips to the object store."""
_SUITES = ("facts", "manners", "style")
_ITEMS_MAX = 1_000_000
"""So many that no finding comes twice: the registry would have nothing to record."""
_OWN_SHARE = 0.08
_ERASE_SHARE = 0.3
_READ_OWN_SHARE = 0.05
IMPORTED_MAX = 4


@dataclass(frozen=True)
class Adapters:
    """The adapters of a run. A few hot ones get a share of all calls, so that writers get in each other's way.

    Besides, every writer has one of its ``own``, which it writes to and erases alone: others, who tried again what
    happened before an erasure, could do it once more to what has the name then. They only read it.
    """

    names: Sequence[str]
    num_hot: int
    own: Sequence[str] = ()

    def choose(self, random: Random, own: str) -> str:
        """Return the adapter of the next call of the writer whose own adapter is ``own``."""
        if random.random() < _OWN_SHARE:
            return own
        if random.random() < _HOT_SHARE:
            return self.names[random.randrange(self.num_hot)]
        return random.choice(self.names)

    def choose_to_read(self, random: Random, adapter: str) -> str:
        """Return the adapter of a read that is about ``adapter``, or now and then about what somebody may erase."""
        return random.choice(self.own) if random.random() < _READ_OWN_SHARE else adapter

    def choose_to_import(self, random: Random, first: str) -> list[str]:
        """Return the adapters of an import, of which ``first`` is one."""
        others = random.sample(self.names, min(len(self.names), random.randint(0, IMPORTED_MAX - 1)))
        return list(dict.fromkeys((first, *others)))


def choose_call(
    random: Random, known: h.Snapshot, digests: Sequence[str], *, may_erase: bool = False
) -> h.Write | h.Resolve:
    """Return a call that makes sense for an adapter that was last seen as ``known``, which may be out of date.

    Pushed revisions have one of ``digests``.
    """
    if may_erase and known.num_revisions and random.random() < _ERASE_SHARE:
        return h.Erase()
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
        case "evaluate":
            if known.num_revisions not in live:
                return h.Resolve(alias)
            num_items = random.randint(1, _ITEMS_MAX)
            share = random.randint(0, num_items) / num_items
            return h.Evaluate(
                h.Finding(known.num_revisions, known.latest_digest, random.choice(_SUITES), share, num_items)
            )
        case "import":
            return h.Import(random.choice(digests), SERVING)
        case _:
            return h.Push(random.choice(digests), random.choice((SERVING, SERVING, "stable", None)))
