"""What a registry could get wrong, each as a change of a good history."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from random import Random

from chaos import history as h
from chaos.model import SERVING, can_be_idle, shows
from support.histories import (
    STALE_MAX_S,
    Mutation,
    acknowledged,
    by_write,
    end_s,
    late_read,
    lives_of,
    relinked,
    resolved,
    states_of,
    with_ledger,
    with_operation,
)

MUTATIONS: dict[str, Mutation] = {}


def mutation(made: Mutation) -> Mutation:
    MUTATIONS[made.__name__] = made
    return made


def _drop(of: Callable[[h.History], list[h.Operation]], *, hide: bool) -> Mutation:
    def drop(history: h.History, random: Random) -> h.History | None:
        if not (found := of(history)):
            return None
        one = random.choice(found)
        left = [entry for entry in history.ledger[one.adapter] if entry.write != one.write]
        return with_ledger(history, one.adapter, relinked(left) if hide else left)

    return drop


def _certain(history: h.History) -> list[h.Operation]:
    """Not those that may find all as they want, where it was so before: a deposed leader could have said it."""
    return [one for one in acknowledged(history) if not can_be_idle(one.call) or not _was_so_before(history, one)]


def _was_so_before(history: h.History, one: h.Operation) -> bool:
    place = next(number for number, entry in enumerate(history.ledger[one.adapter]) if entry.write == one.write)
    return any(shows(state, one.call, one.seen[0]) for state in states_of(history, one.adapter)[: place + 1])


MUTATIONS["an_acknowledged_write_is_gone"] = _drop(_certain, hide=False)
MUTATIONS["an_acknowledged_write_is_gone_without_a_gap"] = _drop(_certain, hide=True)
MUTATIONS["an_acknowledged_revision_is_gone"] = _drop(lambda history: acknowledged(history, h.Push), hide=True)
MUTATIONS["an_acknowledged_alias_move_is_gone"] = _drop(
    lambda history: acknowledged(history, h.Promote, h.Rollback), hide=True
)


@mutation
def the_last_acknowledged_writes_are_gone(history: h.History, random: Random) -> h.History | None:
    one = random.choice(_certain(history))
    entries = history.ledger[one.adapter]
    place = next(number for number, entry in enumerate(entries) if entry.write == one.write)
    return with_ledger(history, one.adapter, entries[:place])


@mutation
def a_whole_adapter_is_gone(history: h.History, random: Random) -> h.History | None:
    one = random.choice(acknowledged(history))
    return with_ledger(history, one.adapter, ())


def _again(history: h.History, entry: h.LedgerEntry, adapter: str) -> h.History:
    """Let a write happen once more, at the end."""
    entries = history.ledger[adapter]
    last = entries[-1]
    return with_ledger(
        history,
        adapter,
        [*entries, replace(entry, sequence=last.sequence + 1, previous_sequence=last.sequence)],
    )


@mutation
def a_write_happens_twice(history: h.History, random: Random) -> h.History | None:
    one = random.choice(acknowledged(history))
    entry = next(entry for entry in history.ledger[one.adapter] if entry.write == one.write)
    return _again(history, entry, one.adapter)


@mutation
def a_tag_is_set_twice_and_nobody_can_see_it(history: h.History, random: Random) -> h.History | None:
    last = [(name, entries[-1]) for name, entries in history.ledger.items()
            if isinstance(by_write(history)[entries[-1].write].call, h.Tag)]  # fmt: skip
    if not last:
        return None
    adapter, entry = random.choice(last)
    return _again(history, entry, adapter)


@mutation
def an_unknown_write_happens_twice(history: h.History, random: Random) -> h.History | None:
    unknown = [(name, entry) for name, entries in history.ledger.items() for entry in entries
               if by_write(history)[entry.write].outcome is h.Outcome.UNKNOWN]  # fmt: skip
    if not unknown:
        return None
    adapter, entry = random.choice(unknown)
    return _again(history, entry, adapter)


@mutation
def a_refused_write_happens(history: h.History, random: Random) -> h.History | None:
    refused = [one for one in history.operations if one.outcome is h.Outcome.FAIL and one.adapter in history.ledger]
    if not refused:
        return None
    one = random.choice(refused)
    return _again(history, replace(history.ledger[one.adapter][-1], write=one.write), one.adapter)


@mutation
def a_write_of_nobody_happens(history: h.History, random: Random) -> h.History | None:
    adapter = random.choice(sorted(history.ledger))
    return _again(history, replace(history.ledger[adapter][-1], write="of nobody"), adapter)


@mutation
def two_writes_change_places(history: h.History, random: Random) -> h.History | None:
    """The heads follow the order in the ledger, but clients were told otherwise or saw the first one complete."""
    writes = by_write(history)
    places = []
    for name, entries in history.ledger.items():
        for number, (first, second) in enumerate(itertools.pairwise(entries)):
            completed_s = writes[first.write].completed_s
            if completed_s is not None and completed_s < writes[second.write].invoked_s:
                places.append((name, number))
    if not places:
        return None
    adapter, number = random.choice(places)
    entries = list(history.ledger[adapter])
    entries[number], entries[number + 1] = entries[number + 1], entries[number]
    return with_ledger(history, adapter, relinked(entries))


@mutation
def two_clients_get_one_revision_number(history: h.History, random: Random) -> h.History | None:
    pushed = acknowledged(history, h.Push)
    lives = lives_of(history)
    pairs = [
        (one, other)
        for one, other in itertools.permutations(pushed, 2)
        if one.adapter == other.adapter and lives[one.write] == lives[other.write]
    ]
    if not pairs:
        return None
    one, other = random.choice(pairs)
    first, second = one.seen[0], other.seen[0]
    assert isinstance(first, h.Snapshot)
    assert isinstance(second, h.Snapshot)
    forked = replace(second, num_revisions=first.num_revisions)
    return with_operation(history, other, replace(other, seen=(forked,)))


@mutation
def a_revision_number_is_used_again(history: h.History, random: Random) -> h.History | None:
    one = random.choice(acknowledged(history, h.Push))
    entries = [
        replace(entry, snapshot=replace(entry.snapshot, latest_digest="sha256:other"))
        if entry.write == one.write else entry for entry in history.ledger[one.adapter]
    ]  # fmt: skip
    return with_ledger(history, one.adapter, entries)


@mutation
def two_heads_follow_the_same_one(history: h.History, random: Random) -> h.History | None:
    found = [name for name, entries in history.ledger.items() if len(entries) > 1]
    adapter = random.choice(found)
    entries = list(history.ledger[adapter])
    number = random.randrange(1, len(entries))
    entries[number] = replace(entries[number], previous_sequence=entries[number - 1].previous_sequence)
    return with_ledger(history, adapter, entries)


def _changed_head(change: Callable[[h.Snapshot, h.Snapshot], h.Snapshot | None]) -> Mutation:
    """Change a head and all later ones, until something sets right again what is wrong; ``change(before, head)``."""

    def mutate(history: h.History, random: Random) -> h.History | None:
        places = [
            (name, number, changed)
            for name, entries in history.ledger.items()
            for number in range(1, len(entries))
            if (changed := change(entries[number - 1].snapshot, entries[number].snapshot)) is not None
        ]
        if not places:
            return None
        adapter, number, snapshot = random.choice(places)
        entries = list(history.ledger[adapter])
        entries[number] = replace(entries[number], snapshot=snapshot)
        return with_ledger(history, adapter, entries)

    return mutate


def _alias_move_lost(before: h.Snapshot, head: h.Snapshot) -> h.Snapshot | None:
    return replace(head, aliases=before.aliases) if before.aliases != head.aliases else None


def _alias_resurrected(before: h.Snapshot, head: h.Snapshot) -> h.Snapshot | None:
    gone = {alias: number for alias, number in before.aliases.items() if alias not in head.aliases}
    return replace(head, aliases={**head.aliases, **gone}) if gone else None


def _retirement_lost(before: h.Snapshot, head: h.Snapshot) -> h.Snapshot | None:
    return replace(head, retired=before.retired) if before.retired != head.retired else None


def _grant_kept(before: h.Snapshot, head: h.Snapshot) -> h.Snapshot | None:
    return replace(head, grants=before.grants) if set(before.grants) - set(head.grants) else None


def _tag_lost(before: h.Snapshot, head: h.Snapshot) -> h.Snapshot | None:
    return replace(head, tags=before.tags) if before.tags != head.tags else None


MUTATIONS["an_alias_move_is_lost"] = _changed_head(_alias_move_lost)
MUTATIONS["a_removed_alias_comes_back"] = _changed_head(_alias_resurrected)
MUTATIONS["a_retired_revision_comes_back"] = _changed_head(_retirement_lost)
MUTATIONS["a_revoked_grant_stays"] = _changed_head(_grant_kept)
MUTATIONS["a_tag_is_lost"] = _changed_head(_tag_lost)


@mutation
def an_answer_shows_another_head(history: h.History, random: Random) -> h.History | None:
    one = random.choice([one for one in acknowledged(history) if isinstance(one.seen[0], h.Snapshot)])
    seen = one.seen[0]
    assert isinstance(seen, h.Snapshot)
    return with_operation(history, one, replace(one, seen=(replace(seen, tags=(*seen.tags, "never-set")),)))


@mutation
def a_repeated_write_gets_another_answer(history: h.History, random: Random) -> h.History | None:
    twice = [one for one in acknowledged(history) if len(one.seen) > 1 and isinstance(one.seen[1], h.Snapshot)]
    if not twice:
        return None
    one = random.choice(twice)
    assert isinstance(one.seen[1], h.Snapshot)
    other = replace(one.seen[1], num_revisions=one.seen[1].num_revisions + 1)
    return with_operation(history, one, replace(one, seen=(one.seen[0], other)))


@mutation
def a_read_shows_a_revision_that_never_was(history: h.History, random: Random) -> h.History | None:
    reads = [one for one in history.operations if one.seen and isinstance(one.seen[0], h.Resolved)]
    if not reads:
        return None
    one = random.choice(reads)
    return with_operation(history, one, replace(one, seen=(h.Resolved(10_000, "sha256:never"),)))


@mutation
def a_read_shows_another_digest(history: h.History, random: Random) -> h.History | None:
    reads = [one for one in history.operations if one.seen and isinstance(one.seen[0], h.Resolved)]
    if not reads:
        return None
    one = random.choice(reads)
    assert isinstance(one.seen[0], h.Resolved)
    return with_operation(history, one, replace(one, seen=(replace(one.seen[0], digest="sha256:other"),)))


@mutation
def a_read_shows_what_comes_later(history: h.History, random: Random) -> h.History | None:
    adapter = random.choice(sorted(history.ledger))
    states = states_of(history, adapter)
    call = h.Resolve(SERVING)
    known = {str(resolved(state, call)) for state in states[:1]}
    later = [state for state in states if str(resolved(state, call)) not in known]
    if not later:
        return None
    begun_s = min(one.invoked_s for one in history.operations)
    return late_read(history, adapter, call, resolved(later[0], call), begun_s - 1.0)


@mutation
def a_read_is_stale_beyond_the_bound(history: h.History, random: Random) -> h.History | None:
    at_s = end_s(history) + STALE_MAX_S + 1.0
    return _old_read(history, random, h.Resolve(random.choice((SERVING, "stable", "beta"))), at_s)


@mutation
def a_revoked_reader_still_reads_beyond_the_bound(history: h.History, random: Random) -> h.History | None:
    at_s = end_s(history) + STALE_MAX_S + 1.0
    return _old_read(history, random, h.Resolve(SERVING, random.choice(("bob@away", "carol@away"))), at_s)


def _old_read(history: h.History, random: Random, call: h.Resolve, at_s: float) -> h.History | None:
    adapter = random.choice(sorted(history.ledger))
    states = states_of(history, adapter)
    # An unknown write at the end may still be on its way, so what it would make is no proof of anything.
    writes = by_write(history)
    num_known = max(
        (number for number, entry in enumerate(history.ledger[adapter], 1)
         if writes[entry.write].outcome is h.Outcome.OK), default=0,
    )  # fmt: skip
    live = {str(resolved(state, call)) for state in states[num_known:]}
    old = [state for state in states[:num_known] if str(resolved(state, call)) not in live]
    return late_read(history, adapter, call, resolved(random.choice(old), call), at_s) if old else None


@mutation
def reads_go_back_in_time(history: h.History, random: Random) -> h.History | None:
    """Both values could be true after the end, as two writes are still on their way: but not in this order."""
    adapter = random.choice(sorted(history.ledger))
    entries = history.ledger[adapter]
    state, last = states_of(history, adapter)[-1], entries[-1]
    at_s = end_s(history) + 1.0
    push = h.Operation("last", adapter, h.Push("sha256:last", SERVING), at_s, None, h.Outcome.UNKNOWN, (), "last")
    snapshot = state.snapshot()
    aliases = {**snapshot.aliases, SERVING: snapshot.num_revisions + 1}
    new = replace(snapshot, num_revisions=snapshot.num_revisions + 1, latest_digest="sha256:last", aliases=aliases)
    both = replace(history, operations=(*history.operations, push))
    link = 0 if last.snapshot == h.GONE else last.sequence
    both = with_ledger(
        both, adapter, [*entries, h.LedgerEntry(last.sequence + 1, link, "last", new, None, state.findings)]
    )
    call = h.Resolve(SERVING)
    seen = h.Resolved(new.num_revisions, "sha256:last")
    both = late_read(both, adapter, call, seen, at_s + 1.0)
    return late_read(both, adapter, call, resolved(state, call), at_s + 2.0 + STALE_MAX_S)


@mutation
def a_refused_swap_names_what_never_was(history: h.History, random: Random) -> h.History | None:
    refused = [one for one in history.operations if one.seen and isinstance(one.seen[0], h.AliasNamed)]
    if not refused:
        return None
    one = random.choice(refused)
    return with_operation(history, one, replace(one, seen=(h.AliasNamed(10_000),)))


@mutation
def an_erased_adapter_still_answers_beyond_the_bound(history: h.History, random: Random) -> h.History | None:
    found = []
    for one in acknowledged(history, h.Erase):
        states, entries = states_of(history, one.adapter), history.ledger[one.adapter]
        place = next(number for number, entry in enumerate(entries) if entry.write == one.write)
        for alias in states[place].aliases:
            seen = resolved(states[place], h.Resolve(alias))
            # An import may give the name the same content again.
            if all(resolved(state, h.Resolve(alias)) != seen for state in states[place + 1 :]):
                found.append((one.adapter, h.Resolve(alias), seen))
    if not found:
        return None
    adapter, call, seen = random.choice(found)
    return late_read(history, adapter, call, seen, end_s(history) + STALE_MAX_S + 1.0)


@mutation
def an_erased_adapter_comes_back(history: h.History, random: Random) -> h.History | None:
    """The push behind an erasure becomes the next revision of what was erased."""
    places = [(name, number) for name, entries in history.ledger.items() for number in range(2, len(entries))
              if entries[number - 1].snapshot == h.GONE]  # fmt: skip
    if not places:
        return None
    adapter, number = random.choice(places)
    entries = list(history.ledger[adapter])
    old, new = entries[number - 2].snapshot, entries[number].snapshot
    head = replace(old, num_revisions=old.num_revisions + 1, latest_digest=new.latest_digest)
    entries[number] = replace(entries[number], snapshot=head)
    return with_ledger(history, adapter, entries)


@mutation
def an_acknowledged_erasure_never_happened(history: h.History, random: Random) -> h.History | None:
    found = []
    for one in acknowledged(history, h.Erase):
        entries = history.ledger[one.adapter]
        if [entry.write for entry in entries if entry.snapshot == h.GONE] == [one.write]:
            found.append(one)
    if not found:
        return None
    one = random.choice(found)
    left = [entry for entry in history.ledger[one.adapter] if entry.write != one.write]
    return with_ledger(history, one.adapter, relinked(left))


@mutation
def an_import_is_told_another_revision(history: h.History, random: Random) -> h.History | None:
    found = acknowledged(history, h.Import)
    if not found:
        return None
    one = random.choice(found)
    seen = one.seen[0]
    assert isinstance(seen, h.Imported)
    return with_operation(history, one, replace(one, seen=(replace(seen, number=seen.number + 1),)))


@mutation
def an_import_happens_twice(history: h.History, random: Random) -> h.History | None:
    found = acknowledged(history, h.Import)
    if not found:
        return None
    one = random.choice(found)
    entry = next(entry for entry in history.ledger[one.adapter] if entry.write == one.write)
    return _again(history, entry, one.adapter)


MUTATIONS["an_imported_revision_is_gone"] = _drop(lambda history: acknowledged(history, h.Import), hide=True)


MUTATIONS["an_acknowledged_evaluation_is_gone"] = _drop(lambda history: acknowledged(history, h.Evaluate), hide=True)


@mutation
def an_evaluation_happens_twice(history: h.History, random: Random) -> h.History | None:
    found = acknowledged(history, h.Evaluate)
    if not found:
        return None
    one = random.choice(found)
    entry = next(entry for entry in history.ledger[one.adapter] if entry.write == one.write)
    return _again(history, entry, one.adapter)


@mutation
def an_evaluation_is_recorded_with_another_score(history: h.History, random: Random) -> h.History | None:
    return _with_evaluation(history, random, lambda entry, other: replace(entry, recorded=other))


@mutation
def a_head_forgets_an_evaluation(history: h.History, random: Random) -> h.History | None:
    return _with_evaluation(history, random, lambda entry, other: replace(entry, findings=entry.findings[:-1]))


def _with_evaluation(
    history: h.History, random: Random, change: Callable[[h.LedgerEntry, h.Finding], h.LedgerEntry]
) -> h.History | None:
    """Change one evaluation's event; ``change(event, another finding)``."""
    places = [(name, number, entry.recorded) for name, entries in history.ledger.items()
              for number, entry in enumerate(entries) if entry.recorded is not None]  # fmt: skip
    if not places:
        return None
    adapter, number, recorded = random.choice(places)
    entries = list(history.ledger[adapter])
    entries[number] = change(entries[number], replace(recorded, share=recorded.share / 2))
    return with_ledger(history, adapter, entries)


@mutation
def an_evaluator_is_told_another_score(history: h.History, random: Random) -> h.History | None:
    found = acknowledged(history, h.Evaluate)
    if not found:
        return None
    one = random.choice(found)
    seen = one.seen[0]
    assert isinstance(seen, h.Finding)
    return with_operation(history, one, replace(one, seen=(replace(seen, share=seen.share / 2),)))
