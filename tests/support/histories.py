"""Histories that a right registry would have, and what could be wrong with them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from chaos import history as h
from chaos.model import SERVING, Impossible, State, apply, can_be_idle, shows

STALE_MAX_S = 10.0
_READERS = ("bob@away", "carol@away")
_ALIASES = (SERVING, "stable", "beta")


class Simulator:
    """A registry that is right by construction: each write happens at one moment between its call and its answer."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._states: dict[str, State] = {}
        self._past: dict[str, list[tuple[float, State]]] = {}
        self._ledger: dict[str, list[h.LedgerEntry]] = {}
        self._operations: list[h.Operation] = []
        self._sequence = 0

    def run(self, num_operations: int, num_adapters: int = 2, num_clients: int = 4) -> h.History:
        """Return a history of concurrent clients, some of whose writes have an unknown outcome."""
        random = self._random
        free_s = dict.fromkeys((f"client-{number}" for number in range(num_clients)), 0.0)
        planned = []
        for number in range(num_operations):
            client = min(free_s, key=lambda name: free_s[name])
            invoked_s = free_s[client] + random.uniform(0.0, 0.5)
            happens_s = invoked_s + random.uniform(0.0, 1.0)
            completed_s = happens_s + random.uniform(0.0, 1.0)
            free_s[client] = completed_s + 0.001
            planned.append((happens_s, invoked_s, completed_s, client, number))
        for happens_s, invoked_s, completed_s, client, number in sorted(planned):
            adapter = f"home/a{random.randrange(num_adapters)}"
            self._one(client, adapter, (happens_s, invoked_s, completed_s), f"w{number}")
        return h.History(tuple(self._operations), {name: tuple(entries) for name, entries in self._ledger.items()})

    def _one(self, client: str, adapter: str, times: tuple[float, float, float], write: str) -> None:
        happens_s, invoked_s, completed_s = times
        random = self._random
        state = self._states.get(adapter, State())
        call = self._call(state)
        if isinstance(call, h.Resolve):
            seen_state = state
            if random.random() < 0.1:
                # What an isolated leader says: how it was some seconds ago.
                past_s = invoked_s - random.uniform(0.0, 0.8 * STALE_MAX_S)
                seen_state = next((s for at_s, s in reversed(self._past.get(adapter, [])) if at_s <= past_s), State())
            self._note(client, adapter, call, invoked_s, completed_s, h.Outcome.OK, (resolved(seen_state, call),))
            return
        try:
            new = apply(state, call)
        except Impossible:
            named = h.AliasNamed(state.aliases.get(call.alias, 0)) if isinstance(call, h.Promote) else None
            is_read = named is not None and shows(state, call, named)
            seen = (named,) if is_read and named is not None else ()
            self._note(client, adapter, call, invoked_s, completed_s, h.Outcome.FAIL, seen, write)
            return
        is_acknowledged = random.random() < 0.9
        is_idle = new == state and can_be_idle(call)
        if isinstance(call, h.Import) and call.digest in state.digests:
            # What is there already is not registered again.
            new, is_idle = state, True
        if not is_idle and (is_acknowledged or random.random() < 0.5):
            self._sequence += random.randint(1, 3)
            entries = self._ledger.setdefault(adapter, [])
            before = entries[-1].sequence if entries and entries[-1].snapshot != h.GONE else 0
            entries.append(h.LedgerEntry(self._sequence, before, write, new.snapshot(), _recorded(call), new.findings))
            self._states[adapter] = new
            self._past.setdefault(adapter, []).append((happens_s, new))
        if is_acknowledged:
            told = imported(new, call) if isinstance(call, h.Import) else _recorded(call) or new.snapshot()
            answers = (told,) * (2 if random.random() < 0.2 and not is_idle else 1)
            self._note(client, adapter, call, invoked_s, completed_s, h.Outcome.OK, answers, write)
        else:
            self._note(client, adapter, call, invoked_s, None, h.Outcome.UNKNOWN, (), write)

    def _note(
        self, client: str, adapter: str, call: h.Write | h.Resolve, invoked_s: float, completed_s: float | None,
        outcome: h.Outcome, seen: tuple[h.Seen, ...], write: str = "",
    ) -> None:  # fmt: skip
        self._operations.append(h.Operation(client, adapter, call, invoked_s, completed_s, outcome, seen, write))

    def _call(self, state: State) -> h.Write | h.Resolve:
        random, num = self._random, len(state.digests)
        alias = random.choice(_ALIASES)
        number = random.randint(1, num + 1)
        if not num or random.random() < 0.15:
            return h.Push(f"sha256:{random.getrandbits(64):x}", random.choice((*_ALIASES, None)))
        named = state.aliases.get(alias, 0)
        return random.choice(
            (
                h.Promote(alias, number, None),
                h.Promote(alias, number, random.choice((named, named, number))),
                h.Rollback(alias, random.choice((None, None, number))),
                h.Unalias("beta"),
                h.Retire(number),
                h.Tag((f"t{random.randrange(9)}",), (f"u{random.randrange(9)}",)),
                h.Grant(random.choice(_READERS)),
                h.Revoke(random.choice(_READERS)),
                h.Import(random.choice((*state.digests, f"sha256:{random.getrandbits(64):x}")), SERVING),
                h.Evaluate(self._finding(state, random.choice((num, number)))),
                h.Erase() if random.random() < 0.4 else h.Resolve(alias),
                h.Resolve(alias),
                h.Resolve(alias),
                h.Resolve(SERVING, random.choice(_READERS)),
            )
        )

    def _finding(self, state: State, number: int) -> h.Finding:
        digest = state.digests[number - 1] if number <= len(state.digests) else "sha256:none"
        return h.Finding(number, digest, self._random.choice(("facts", "style")), self._random.random(), 1_000)


def _recorded(call: h.Write) -> h.Finding | None:
    return call.finding if isinstance(call, h.Evaluate) else None


def imported(state: State, call: h.Import) -> h.Imported:
    """Return what an import is told behind which the adapter is in ``state``."""
    return h.Imported(len(state.digests) - state.digests[::-1].index(call.digest), call.digest)


def resolved(state: State, call: h.Resolve) -> h.Seen:
    """Return what a right registry answers in ``state``."""
    number = state.aliases.get(call.alias)
    if number is None or (call.reader is not None and call.reader not in state.grants):
        return h.NotFound()
    return h.Resolved(number, state.digests[number - 1])


Mutation = Callable[[h.History, Random], h.History | None]
"""Returns the history with something wrong in it, or None where it has no place for that."""


def with_ledger(history: h.History, adapter: str, entries: Sequence[h.LedgerEntry]) -> h.History:
    return replace(history, ledger={**history.ledger, adapter: tuple(entries)})


def with_operation(history: h.History, old: h.Operation, new: h.Operation) -> h.History:
    return replace(history, operations=tuple(new if one is old else one for one in history.operations))


def relinked(entries: Sequence[h.LedgerEntry]) -> list[h.LedgerEntry]:
    """Return the entries with sequences and links as if nothing had happened to them."""
    sequences = sorted(entry.sequence for entry in entries)
    links = [0, *(0 if entry.snapshot == h.GONE else sequence
                  for entry, sequence in zip(entries, sequences, strict=True))]  # fmt: skip
    return [
        replace(entry, sequence=sequence, previous_sequence=link)
        for entry, sequence, link in zip(entries, sequences, links, strict=False)
    ]


def by_write(history: h.History) -> dict[str, h.Operation]:
    return {one.write: one for one in history.operations if one.write}


def made(history: h.History) -> set[str]:
    return {entry.write for entries in history.ledger.values() for entry in entries}


def acknowledged(history: h.History, *kinds: type) -> list[h.Operation]:
    """Return acknowledged writes that left an event, of ``kinds`` if there are any."""
    return [
        one
        for one in history.operations
        if one.outcome is h.Outcome.OK and one.write in made(history) and (not kinds or isinstance(one.call, kinds))
    ]


def states_of(history: h.History, adapter: str) -> list[State]:
    states, writes = [State()], by_write(history)
    for entry in history.ledger.get(adapter, ()):
        call = writes[entry.write].call
        assert not isinstance(call, h.Resolve)
        states.append(apply(states[-1], call))
    return states


def lives_of(history: h.History) -> dict[str, int]:
    """Return for each write of the ledger how many erasures its adapter's name has behind it."""
    lives = {}
    for entries in history.ledger.values():
        life = 0
        for entry in entries:
            lives[entry.write] = life
            life += entry.snapshot == h.GONE
    return lives


def end_s(history: h.History) -> float:
    return max(one.completed_s or one.invoked_s for one in history.operations)


def late_read(history: h.History, adapter: str, call: h.Resolve, seen: h.Seen, at_s: float) -> h.History:
    """Return the history with one more read."""
    read = h.Operation("late", adapter, call, at_s, at_s + 0.1, h.Outcome.OK, (seen,))
    return replace(history, operations=(*history.operations, read))
