"""Permissions that the server denied, said once for each subject: otherwise they show as time-outs only."""

import re

from octavo_shared.permissions import INBOX
from octavo_shared.telemetry import log

_DENIED = re.compile(r'permissions violation for (publish|subscription)[^"]*"([^"]+)"')
_SUBJECTS_MAX = 256


class Denials:
    """Remembers what one connection was denied."""

    def __init__(self, bus: str) -> None:
        self._bus = bus
        self._seen: set[tuple[str, str]] = set()

    def note(self, error: Exception) -> bool:
        """Tell whether ``error`` is a denied permission, and log it if its subject is new."""
        match = _DENIED.search(str(error).lower())
        if match is None:
            return False
        operation, subject = match.groups()
        if subject.startswith(INBOX.lower()):
            # Every inbox is another subject.
            subject = subject.split(".")[0] + ".>"
        if (operation, subject) not in self._seen and len(self._seen) < _SUBJECTS_MAX:
            self._seen.add((operation, subject))
            log.error("permission_denied", bus=self._bus, operation=operation, subject=subject)
        return True
