"""Settings from ``OCTAVO_*`` variables: read once, at start; anything unknown or invalid refuses to start."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from octavo_shared import decoding

_PREFIX = "OCTAVO_"


class ConfigError(Exception):
    """A variable is unknown, missing or invalid; the message names it."""


class BusSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service needs. Ports of 0 mean: no probe server.

    ``nats_seed_file`` holds the seed of the service's nkey; empty: connect without, to a server that asks for none.
    """

    nats_url: str = "nats://127.0.0.1:4222"
    nats_seed_file: str = ""
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class StoreSettings(BusSettings, frozen=True, kw_only=True):
    """For services that touch object storage."""

    s3_endpoint: str = "127.0.0.1:8333"
    s3_access_key: str = ""
    s3_secret_key: str = ""
    s3_bucket: str = "octavo"
    s3_is_tls: bool = False


S = TypeVar("S", bound=msgspec.Struct)


def read_settings(kind: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Return ``kind`` filled from ``OCTAVO_<FIELD>``; raises ``ConfigError`` naming the variable at fault."""
    environ = os.environ if environ is None else environ
    given = {name: value for name, value in environ.items() if name.startswith(_PREFIX)}
    known = {_PREFIX + field.name.upper(): field for field in msgspec.structs.fields(kind)}
    for name in sorted(given.keys() - known.keys()):
        raise ConfigError(f"{name} is not a setting of this service; known: {', '.join(sorted(known))}")
    values = {}
    for name, field in known.items():
        if name not in given:
            if field.required:
                raise ConfigError(f"{name} must be set")
            continue
        try:
            values[field.name] = decoding.convert(given[name], field.type, strict=False, dec_hook=_path)
        except msgspec.ValidationError as problem:
            raise ConfigError(f"{name}={given[name]!r} is invalid: {problem}") from None
    try:
        return kind(**values)
    except ValueError as problem:
        # What a service's settings say about each other.
        raise ConfigError(str(problem)) from None


def _path(kind: type[Any], value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError
