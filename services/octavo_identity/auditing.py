"""The verb that shows the background audit: of this replica, and of all others that were heard of lately."""

import asyncio

from octavo_identity import access
from octavo_identity.auditor import Auditor
from octavo_identity.desk import Desk
from octavo_shared import subjects
from octavo_shared.bus import Bus
from octavo_shared.clock import now_ms
from octavo_shared.errors import DependencyUnavailable
from octavo_shared.messages.auditing import AuditReport, AuditState, GetAuditState
from octavo_shared.telemetry import log

_SAY_EVERY_S = 5.0
_HEARD_MS = 30_000
_REPLICAS_MAX = 64


class Auditing:
    """Each replica audits its own tree and tells the others, so that whichever is asked answers for all of them."""

    def __init__(self, desk: Desk, bus: Bus, auditor: Auditor | None) -> None:
        self._desk = desk
        self._bus = bus
        self._auditor = auditor
        self._heard: dict[str, tuple[float, AuditState]] = {}

    async def audit_state(self, request: GetAuditState) -> AuditReport:
        """Return how far each replica's audit is, and what it has found. Reads only.

        Raises ``NotPermitted`` for all but admins and tenants' auditors.
        """
        access.check_audit(await self._desk.authenticate(request.credential))
        own = [self._auditor.state] if self._auditor else []
        states = {state.replica: state for state in [*self._lately(), *own]}
        return AuditReport(tuple(states[replica] for replica in sorted(states)))

    async def heard(self, state: AuditState) -> None:
        """Another replica, or this one, says how far it is."""
        if state.replica in self._heard or len(self._lately()) < _REPLICAS_MAX:
            self._heard[state.replica] = now_ms(), state

    async def run(self, auditor: Auditor) -> None:
        """Tell the other replicas of ``auditor``, for ever."""
        while True:
            try:
                await self._bus.publish(subjects.AUDITED, auditor.state)
            except DependencyUnavailable as error:
                log.debug("audit_untold", detail=error.message)
            await asyncio.sleep(_SAY_EVERY_S)

    def _lately(self) -> list[AuditState]:
        horizon_ms = now_ms() - _HEARD_MS
        self._heard = {replica: one for replica, one in self._heard.items() if one[0] >= horizon_ms}
        return [state for _, state in self._heard.values()]
