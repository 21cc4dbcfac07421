"""What a write makes of an adapter: the registry's rules once more, written from its description and not from its code.

Pure. The checker applies the ledger's writes one after the other and compares each head with what this says.
"""

from dataclasses import dataclass, field, replace
from typing import TypeVar

from chaos import history as h

SERVING = "serving"
_TRAIL_MAX = 8
_FINDINGS_MAX = 32

T = TypeVar("T")


class Impossible(Exception):
    """The write cannot have been accepted in this state; the message says why."""


@dataclass(frozen=True)
class State:
    """An adapter between two events. ``served`` has for each revision what ``serving`` named when it was pushed (0).

    ``num_erased`` counts those that had the name before.
    """

    digests: tuple[str, ...] = ()
    served: tuple[int, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)
    trails: dict[str, tuple[int, ...]] = field(default_factory=dict)
    tags: frozenset[str] = frozenset()
    grants: frozenset[str] = frozenset()
    retired: frozenset[int] = frozenset()
    num_erased: int = 0
    findings: tuple[h.Finding, ...] = ()

    def snapshot(self) -> h.Snapshot:
        """Return what an answer would show of it."""
        return h.Snapshot(
            len(self.digests),
            self.digests[-1] if self.digests else "",
            dict(self.aliases),
            tuple(sorted(self.tags)),
            tuple(sorted(self.grants)),
            _ranges(self.retired),
        )

    def named_before(self, alias: str) -> int:
        """Return what a rollback of ``alias`` goes back to; raises ``Impossible``."""
        live = [number for number in self.trails.get(alias, ()) if number not in self.retired]
        if live:
            return live[-1]
        number = self.served[self.aliases[alias] - 1] if alias in self.aliases else 0
        if not number:
            raise Impossible(f"'{alias}' has nothing to go back to")
        return number


def apply(state: State, call: h.Write) -> State:
    """Return the state that ``call`` leaves; raises ``Impossible``. One that changes nothing leaves an equal one."""
    if not state.digests and not isinstance(call, h.Push | h.Import):
        raise Impossible("there was no adapter")
    match call:
        case h.Erase():
            return State(num_erased=state.num_erased + 1)
        case h.Push() | h.Import():
            pushed = replace(
                state, digests=(*state.digests, call.digest), served=(*state.served, state.aliases.get(SERVING, 0))
            )
            return pushed if call.alias is None else _named(pushed, call.alias, len(pushed.digests))
        case h.Promote():
            named = state.aliases.get(call.alias, 0)
            if call.expected is not None and call.expected != named:
                raise Impossible(f"'{call.alias}' named {named} and not {call.expected}")
            return _named(state, call.alias, call.number)
        case h.Rollback():
            number = state.named_before(call.alias) if call.number is None else call.number
            trail = state.trails.get(call.alias, ())
            ends = len(trail) - 1 - trail[::-1].index(number) if number in trail else 0
            return _named(state, call.alias, number, trail[:ends])
        case h.Unalias():
            if call.alias not in state.aliases:
                raise Impossible(f"'{call.alias}' named nothing")
            return replace(state, aliases=_less(state.aliases, call.alias), trails=_less(state.trails, call.alias))
        case h.Retire():
            if call.number in state.aliases.values():
                raise Impossible(f"an alias named {call.number}")
            if not 1 <= call.number <= len(state.digests):
                raise Impossible(f"there was no revision {call.number}")
            return replace(state, retired=state.retired | {call.number})
        case h.Tag():
            return replace(state, tags=(state.tags | {*call.add}) - {*call.remove})
        case h.Grant():
            return replace(state, grants=state.grants | {call.principal})
        case h.Revoke():
            return replace(state, grants=state.grants - {call.principal})
        case h.Evaluate():
            return _evaluated(state, call.finding)


def can_be_idle(call: h.Write) -> bool:
    """Tell whether the registry may acknowledge ``call`` without an event, because all is as wanted already."""
    return isinstance(call, h.Grant | h.Revoke | h.Retire | h.Import | h.Erase)


def shows(state: State, call: h.Write | h.Resolve, seen: h.Seen) -> bool:
    """Tell whether an answer to ``call`` may show ``seen`` while the adapter is in ``state``."""
    match seen, call:
        case h.Snapshot(), h.Push() | h.Promote() | h.Rollback() | h.Unalias() | h.Tag() | h.Resolve():
            return False
        case h.Snapshot(), _:
            return _is_as_wanted(state, call) and seen == state.snapshot()
        case h.Imported(), h.Import():
            return (
                1 <= seen.number <= len(state.digests) and state.digests[seen.number - 1] == seen.digest == call.digest
            )
        case h.AliasNamed(), h.Promote():
            return state.aliases.get(call.alias, 0) == seen.number and seen.number != call.expected
        case h.Resolved(), h.Resolve():
            number = _resolved(state, call)
            return number is not None and seen == h.Resolved(number, state.digests[number - 1])
        case h.NotFound(), h.Resolve():
            return _resolved(state, call) is None
        case _:
            return False


def _is_as_wanted(state: State, call: h.Write | h.Resolve) -> bool:
    match call:
        case h.Grant():
            return call.principal in state.grants
        case h.Revoke():
            return call.principal not in state.grants
        case h.Retire():
            return call.number in state.retired
        case h.Erase():
            return not state.digests and state.num_erased > 0
        case _:
            return False


def _resolved(state: State, call: h.Resolve) -> int | None:
    is_reader = call.reader is None or call.reader in state.grants
    return state.aliases.get(call.alias) if is_reader else None


def _named(state: State, alias: str, number: int, trail: tuple[int, ...] | None = None) -> State:
    if not 1 <= number <= len(state.digests):
        raise Impossible(f"there was no revision {number}")
    if number in state.retired:
        raise Impossible(f"revision {number} was retired")
    if trail is None:
        before, trail = state.aliases.get(alias, 0), state.trails.get(alias, ())
        if before not in (0, number):
            trail = (*trail, before)[-_TRAIL_MAX:]
    return replace(state, aliases={**state.aliases, alias: number}, trails={**state.trails, alias: trail})


def _evaluated(state: State, finding: h.Finding) -> State:
    """Keep the newest finding of each revision and suite; of too many, those of revisions that no alias names go."""
    number = finding.number
    if not 1 <= number <= len(state.digests) or state.digests[number - 1] != finding.digest:
        raise Impossible(f"there was no revision {number} of {finding.digest}")
    if number in state.retired:
        raise Impossible(f"revision {number} was retired")
    kept = [one for one in state.findings if (one.number, one.suite) != (number, finding.suite)]
    if len(kept) == _FINDINGS_MAX:
        named = {*state.aliases.values(), number}
        kept.remove(next((one for one in kept if one.number not in named), kept[0]))
    return replace(state, findings=(*kept, finding))


def _less(found: dict[str, T], name: str) -> dict[str, T]:
    return {key: value for key, value in found.items() if key != name}


def _ranges(numbers: frozenset[int]) -> tuple[tuple[int, int], ...]:
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return tuple(ranges)
