"""Who a process is on NATS: its role, and the seed of the nkey that proves it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import nkeys

from octavo_shared.config import ConfigError
from octavo_shared.permissions import BusRole

_SEED_BYTES = 32


@dataclass(frozen=True)
class BusCredentials:
    """What a bus connects with. The seed is a secret: it stays out of what is printed. ``member`` is a worker's id."""

    role: BusRole
    seed: str = field(repr=False)
    member: str = ""


def read_credentials(role: BusRole, seed_file: str, member: str = "") -> BusCredentials | None:
    """Return the credentials in ``seed_file``, or None when it is empty: an open server asks for none.

    Raises ``ConfigError`` when the file cannot be read or holds no seed.
    """
    return BusCredentials(role, read_seed(Path(seed_file)), member) if seed_file else None


def read_seed(path: Path) -> str:
    """Return the seed in ``path``; raises ``ConfigError``."""
    try:
        seed = path.read_text().strip()
        public_nkey(seed)
    except OSError as error:
        raise ConfigError(f"the nkey seed {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} holds no nkey seed") from None
    return seed


def new_seed() -> str:
    """Return the seed of a new user nkey."""
    return bytes(nkeys.encode_seed(os.urandom(_SEED_BYTES), nkeys.PREFIX_BYTE_USER)).decode()


def public_nkey(seed: str) -> str:
    """Return the public half, which the server is told; raises ``ValueError`` when ``seed`` is none of a user."""
    try:
        nkey = bytes(nkeys.from_seed(bytearray(seed.encode())).public_key).decode()
    except nkeys.NkeysError as error:
        raise ValueError(str(error)) from None
    if not nkey.startswith("U"):
        raise ValueError("the seed of another kind of nkey")
    return nkey
