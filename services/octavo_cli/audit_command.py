"""``octavo audit``: what the background audits of the ledger have found."""

import sys
from datetime import datetime

from rich.console import Console

from octavo_cli.client import Client
from octavo_cli.options import Gateway, Key
from octavo_shared.messages.auditing import AuditState


def audit(gateway: Gateway, key: Key) -> None:
    """Show how far identity's own audit of the ledger is; ends with 1 if it found anything (admin, auditor)."""
    with Client(gateway, key) as client:
        replicas = client.audit_state().replicas
    if not replicas:
        _say("no identity audits the ledger in the background: OCTAVO_AUDIT_EVENTS_PER_S is 0")
    for state in replicas:
        for line in _lines(state):
            _say(line)
    if any(state.num_findings for state in replicas):
        sys.exit(1)


def _lines(state: AuditState) -> list[str]:
    done = "no round is finished yet"
    if state.num_rounds:
        when = datetime.fromtimestamp(state.finished_ms / 1000).astimezone().isoformat(" ", "seconds")
        done = f"round {state.num_rounds} finished {when}, over {state.finished_size} events"
    lines = [f"{state.replica}  {done}"]
    if state.position:
        lines.append(f"  at event {state.position} of {state.size}, {state.events_per_s} events/s at most")
    if not state.num_findings:
        return [
            *lines,
            "  nothing is changed, missing or out of place, and statements verify"
            if state.num_rounds
            else "  nothing found so far",
        ]
    lines += [f"  {one.kind}: {one.detail}" for one in state.findings]
    return [*lines, f"  {state.num_findings} findings; what the audit no longer finds goes with the next whole round"]


def _say(line: str) -> None:
    Console().print(line, soft_wrap=True, highlight=False, markup=False)
