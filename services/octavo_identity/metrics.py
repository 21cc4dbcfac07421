"""Identity's metrics. Labels are small fixed sets: never a user, tenant or adapter."""

from prometheus_client import Gauge

from octavo_shared.messages.auditing import AuditState

_AUDITED = Gauge("octavo_identity_audit_position", "Events of the ledger that the running audit has gone over")
_TO_AUDIT = Gauge("octavo_identity_audit_size", "Events that the running audit goes over in all")
_ROUNDS = Gauge("octavo_identity_audit_rounds", "Audits of the whole ledger that this replica has finished")
_FINISHED = Gauge("octavo_identity_audit_finished_seconds", "When it finished the last one, in seconds since 1970")
_FINDINGS = Gauge("octavo_identity_audit_findings", "What is wrong with the ledger now, as far as it was audited")


def show_audit(state: AuditState) -> None:
    """Show how far the audit is and what it has found."""
    _AUDITED.set(state.position)
    _TO_AUDIT.set(state.size)
    _ROUNDS.set(state.num_rounds)
    _FINISHED.set(state.finished_ms / 1000)
    _FINDINGS.set(state.num_findings)
