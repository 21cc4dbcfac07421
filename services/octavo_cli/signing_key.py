"""The file that holds a private signing key: PEM as other tools write it, readable by its owner alone."""

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from octavo_cli.answers import ClientError
from octavo_shared.dsse import PublicKey, Signer
from octavo_shared.errors import InvalidRequest

VARIABLE = "OCTAVO_SIGNING_KEY"
SigningKey = Annotated[
    Path | None,
    typer.Option("--signing-key", envvar=VARIABLE, help="file of the key to sign with; see `octavo signer new`",
                 show_default=False),
]  # fmt: skip

_SEED_BYTES = 32
_FILE_BYTES_MAX = 4_096
_OTHERS = 0o077


def make_key(path: Path) -> Signer:
    """Write a fresh key to ``path``, which must not exist yet, with mode 0600; return what signs with it."""
    seed = secrets.token_bytes(_SEED_BYTES)
    pem = Ed25519PrivateKey.from_private_bytes(seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Made anew, so that no key is lost, and no file whose mode or owner somebody else chose is written to.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(pem)
    return Signer(seed)


def read_key(path: Path) -> Signer:
    """Return what signs with the key in ``path``; raises ``ClientError`` that names the file and what is wrong."""
    pem = _read(path)
    try:
        key = serialization.load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad(path, "holds no Ed25519 private key in PEM form without a passphrase")
    if path.stat().st_mode & _OTHERS:
        raise _bad(path, "can be read or written by others than its owner: chmod 600 it")
    return Signer(key.private_bytes_raw())


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in ``path``, or that of the private key there."""
    pem = _read(path)
    if b"PRIVATE KEY" in pem:
        return read_key(path).public_key
    try:
        return PublicKey.parse(pem.decode(errors="replace"))
    except InvalidRequest:
        raise _bad(path, "holds no Ed25519 key in PEM form") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_FILE_BYTES_MAX)


def _bad(path: Path, problem: str) -> ClientError:
    return ClientError("bad_signing_key", f"{path} {problem}", 0)
