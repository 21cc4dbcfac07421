"""What this user has seen of a gateway's ledger: its public key and newest checkpoint, in a file per gateway."""

import hashlib
import os
from pathlib import Path

from octavo_cli.answers import ClientError
from octavo_cli.verification import NotProven, Trusted
from octavo_shared.checkpoint import CheckpointRefused, Verifier


class TrustFile:
    """Pins the first key that is seen, as ssh does, unless one is given; then every later checkpoint must follow."""

    def __init__(self, gateway: str, folder: Path | None = None) -> None:
        mark = hashlib.sha256(gateway.rstrip("/").encode()).hexdigest()[:16]
        self.path = (folder or _folder()) / mark
        self._verifier: Verifier | None = None
        self._note = ""
        if self.path.exists():
            key, _, self._note = self.path.read_text().partition("\n")
            try:
                self._verifier = Verifier.parse(key)
                self._verifier.open(self._note)
            except CheckpointRefused as error:
                raise ClientError("bad_file", f"{self.path} is damaged ({error}); restore or delete it", 0) from None

    @property
    def is_pinned(self) -> bool:
        return self._verifier is not None

    @property
    def seen_size(self) -> int:
        """Size of the newest checkpoint seen; 0 before the first."""
        return self._verifier.open(self._note).size if self._verifier else 0

    def trusted(self, told: str, given: str | None) -> Trusted:
        """Return what to trust: the key that was ``given``, else the pinned one, else the one that the server told.

        Raises ``NotProven`` when two of them differ.
        """
        try:
            given_verifier = Verifier.parse(given) if given is not None else None
        except CheckpointRefused as error:
            raise ClientError("bad_key", str(error), 0) from None
        try:
            verifier = given_verifier or self._verifier or Verifier.parse(told)
        except CheckpointRefused as error:
            raise NotProven(str(error)) from None
        if self._verifier not in (None, verifier):
            raise NotProven(f"the ledger's key {verifier} is not the one that was pinned in {self.path}")
        if str(verifier) != told:
            raise NotProven(f"the ledger is signed by {told}, and not by {verifier}; pinned in {self.path}")
        return Trusted(verifier, verifier.open(self._note) if self._verifier else None)

    def remember(self, verifier: Verifier, note: str) -> None:
        """Keep a checkpoint that was verified, in one visible step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(f".{os.getpid()}")
        temporary.write_text(f"{verifier}\n{note}")
        temporary.replace(self.path)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "octavo" / "checkpoints"
