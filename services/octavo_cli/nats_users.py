"""The users of a nats-server: an nkey for each role, and the configuration that says what each may do."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from octavo_shared.credentials import new_seed, public_nkey, read_seed
from octavo_shared.permissions import PERMISSIONS, BusRole


def nkey_variable(role: BusRole) -> str:
    """Return the environment variable that tells a deployed nats-server the nkey of ``role``."""
    return f"NATS_NKEY_{role.upper()}"


NKEY_VARIABLES: Mapping[BusRole, str] = {role: f"${nkey_variable(role)}" for role in BusRole}
"""What stands for the nkeys in a configuration that holds none itself."""


class Seeds:
    """The nkey seeds of one deployment, a file for each role, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, role: BusRole) -> Path:
        """Return where the seed of ``role`` is, or will be."""
        return self._folder / f"{role}.seed"

    def nkeys(self) -> dict[BusRole, str]:
        """Return every role's nkey; seeds that are missing are made first, others stay as they are.

        Raises ``ConfigError`` when a file holds no seed.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for role in BusRole:
            if not self.path(role).exists():
                _write_secret(self.path(role), new_seed())
        return {role: public_nkey(read_seed(self.path(role))) for role in BusRole}


def _write_secret(path: Path, text: str) -> None:
    # Written aside first: a start that is interrupted here leaves no file without a seed.
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    aside.replace(path)


def authorization(nkeys: Mapping[BusRole, str]) -> str:
    """Return the ``authorization`` block of nats-server's configuration: who has none of ``nkeys`` is not let in."""
    users = "".join(
        f"    # {role}\n"
        f"    {{\n"
        f"      nkey: {nkeys[role]}\n"
        f"      permissions: {{\n"
        f"        publish: {{allow: [\n{_lines(permissions.publish)}        ]}}\n"
        f"        subscribe: {{allow: [\n{_lines(permissions.subscribe)}        ]}}\n"
        f"      }}\n"
        f"    }}\n"
        for role, permissions in PERMISSIONS.items()
    )
    return (
        "authorization {\n"
        "  # For a user that is added without permissions of its own.\n"
        '  default_permissions: {publish: {deny: ">"}, subscribe: {deny: ">"}}\n'
        f"  users: [\n{users}  ]\n"
        "}\n"
    )


def _lines(allowed: Iterable[str]) -> str:
    return "".join(f'          "{subject}"\n' for subject in allowed)
