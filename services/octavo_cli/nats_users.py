"""The users of a nats-server: an nkey for each role, and for each worker, and what its configuration lets each do."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from octavo_shared.credentials import new_seed, public_nkey, read_seed
from octavo_shared.permissions import PERMISSIONS, Permissions, worker_permissions

ROLES = tuple(str(role) for role in PERMISSIONS)
"""The users that there is one of each. All others are workers, called by their ids."""


def deployed_workers(num_workers: int) -> tuple[str, ...]:
    """Return the ids of so many workers, as the pods of their StatefulSet are called."""
    return tuple(f"octavo-worker-{number}" for number in range(num_workers))


def nkey_variable(user: str) -> str:
    """Return the environment variable that tells a deployed nats-server the nkey of ``user``."""
    return f"NATS_NKEY_{user.upper().replace('-', '_')}"


def nkey_variables(workers: Iterable[str]) -> dict[str, str]:
    """Return what stands for the nkeys of all roles and ``workers`` in a configuration that holds none itself."""
    return {user: f"${nkey_variable(user)}" for user in (*ROLES, *workers)}


class Seeds:
    """The nkey seeds of one deployment, a file for each user, which only its owner can read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, user: str) -> Path:
        """Return where the seed of ``user`` is, or will be."""
        return self._folder / f"{user}.seed"

    def nkeys(self, workers: Iterable[str] = ()) -> dict[str, str]:
        """Return the nkeys of all roles and ``workers``; seeds that are missing are made first, others stay.

        Raises ``ConfigError`` when a file holds no seed.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        users = (*ROLES, *workers)
        for user in users:
            if not self.path(user).exists():
                _write_secret(self.path(user), new_seed())
        return {user: public_nkey(read_seed(self.path(user))) for user in users}


def _write_secret(path: Path, text: str) -> None:
    # Written aside first: a start that is interrupted here leaves no file without a seed.
    aside = path.with_suffix(".new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    aside.replace(path)


def _permissions_of(user: str) -> Permissions:
    return next((found for role, found in PERMISSIONS.items() if role == user), None) or worker_permissions(user)


def authorization(nkeys: Mapping[str, str]) -> str:
    """Return the ``authorization`` block of nats-server's configuration: who has none of ``nkeys`` is not let in."""
    users = "".join(
        f"    # {user}\n"
        f"    {{\n"
        f"      nkey: {nkey}\n"
        f"      permissions: {{\n"
        f"        publish: {{allow: [\n{_lines(permissions.publish)}        ]}}\n"
        f"        subscribe: {{allow: [\n{_lines(permissions.subscribe)}        ]}}\n"
        f"      }}\n"
        f"    }}\n"
        for user, nkey in nkeys.items()
        for permissions in [_permissions_of(user)]
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
