"""A scenario file: what is asked of whom, how often, and what counts as good. Every error names its field."""

import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from octavo_shared import decoding
from octavo_shared.errors import InvalidRequest

NUM_REQUESTS_MAX = 1_000_000
NUM_ADAPTERS_MAX = 1_000_000
_NUM_TOKENS_MAX = 1_000_000
_FILE_BYTES_MAX = 4 * 1024 * 1024

Millis = Annotated[float, Meta(gt=0.0, le=3_600_000.0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class Transport(StrEnum):
    HTTP = "http"
    NATS = "nats"


class PopularityKind(StrEnum):
    IDENTICAL = "identical"
    """Every request names the first adapter."""
    UNIFORM = "uniform"
    ZIPF = "zipf"
    """The k-th adapter of the file is asked for in proportion to ``k ** -exponent``."""
    DISTINCT = "distinct"
    """No adapter comes again before all others came."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Load(_Section, frozen=True, kw_only=True):
    """Open-loop Poisson arrivals. ``deadline_s`` of a request runs from its scheduled arrival.

    Requests that arrive within the first ``warmup_s`` are sent and not measured.
    """

    rate_per_s: Annotated[float, Meta(gt=0.0, le=100_000.0)]
    duration_s: Annotated[float, Meta(gt=0.0, le=86_400.0)]
    warmup_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.0
    in_flight_max: Annotated[int, Meta(ge=1, le=10_000)] = 256
    deadline_s: Annotated[float, Meta(gt=0.0, le=3_600.0)] = 60.0


class Popularity(_Section, frozen=True, kw_only=True):
    kind: PopularityKind = PopularityKind.UNIFORM
    exponent: Annotated[float, Meta(ge=0.0, le=10.0)] = 1.0


class Adapter(_Section, frozen=True, kw_only=True):
    """One adapter (or the base's own name), or ``num`` of them where ``model`` holds ``{i}``, counted from 0.

    ``key`` is the API key, or ``$NAME`` for the one in that environment variable.
    """

    model: Name
    key: Name = "$OCTAVO_KEY"
    num: Annotated[int, Meta(ge=1, le=NUM_ADAPTERS_MAX)] = 1

    def __repr__(self) -> str:
        return f"Adapter(model={self.model!r}, num={self.num})"


class Prompt(_Section, frozen=True, kw_only=True):
    """One conversation to open. ``max_tokens`` is a number or ``[least, most]``, drawn evenly."""

    text: Annotated[str, Meta(min_length=1)]
    system: str = ""
    # Checked by hand: msgspec 0.22 corrupts memory when a bounded integer shares a union with a tuple of fixed length.
    max_tokens: int | tuple[int, int] = 32
    weight: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0

    @property
    def max_tokens_range(self) -> tuple[int, int]:
        return (self.max_tokens, self.max_tokens) if isinstance(self.max_tokens, int) else self.max_tokens


class Sampling(_Section, frozen=True, kw_only=True):
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0


class Objectives(_Section, frozen=True, kw_only=True):
    """A request is good when it met every limit given here; the two shares decide the exit code.

    ``cold_start_ttft_ms`` replaces ``ttft_ms`` for requests whose adapter was cold. ``itl_ms`` bounds the widest gap.
    """

    ttft_ms: Millis | None = None
    cold_start_ttft_ms: Millis | None = None
    tpot_ms: Millis | None = None
    itl_ms: Millis | None = None
    end_to_end_ms: Millis | None = None
    errors_share_max: Share = 0.0
    goodput_share_min: Share = 0.0


class Scenario(_Section, frozen=True, kw_only=True):
    """A whole file. The two addresses may also come from ``OCTAVO_GATEWAY_URL`` and ``OCTAVO_NATS_URL``, the file with
    the client's nkey seed from ``OCTAVO_NATS_SEED_FILE``.
    """

    name: Name
    load: Load
    adapters: Annotated[tuple[Adapter, ...], Meta(min_length=1)]
    prompts: Annotated[tuple[Prompt, ...], Meta(min_length=1, max_length=100_000)]
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    transport: Transport = Transport.HTTP
    gateway_url: str = ""
    nats_url: str = ""
    nats_seed_file: str = ""
    popularity: Popularity = Popularity()
    sampling: Sampling = Sampling()
    objectives: Objectives = Objectives()


def read_scenario(path: Path) -> Scenario:
    """Return the scenario in the TOML file ``path``; raises ``InvalidRequest`` naming the field at fault."""
    try:
        if path.stat().st_size > _FILE_BYTES_MAX:
            raise InvalidRequest(str(path), f"is larger than {_FILE_BYTES_MAX} bytes")
        return parse_scenario(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRequest(str(path), f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(str(path), "is not UTF-8") from error


def parse_scenario(text: str) -> Scenario:
    """Return the scenario that the TOML ``text`` describes; raises ``InvalidRequest`` naming the field at fault."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest("scenario", f"is not TOML: {error}") from error
    # Items of lists are looked at one by one first, because the whole conversion does not say which item it means.
    items: tuple[tuple[str, type[_Section]], ...] = (("adapters", Adapter), ("prompts", Prompt))
    for name, kind in items:
        if isinstance(found := raw.get(name), list):
            for index, item in enumerate(found):
                _convert(item, kind, f"{name}[{index}]")
    scenario = _convert(raw, Scenario, "")
    _check(scenario)
    return scenario


def with_addresses(scenario: Scenario, environ: Mapping[str, str], gateway_url: str, nats_url: str) -> Scenario:
    """Return ``scenario`` with its addresses: the ones given here come first, then its own, then the environment's.
    So does the seed file.

    Raises ``InvalidRequest`` when the one that its transport needs is missing or has another form.
    """
    gateway_url = gateway_url or scenario.gateway_url or environ.get("OCTAVO_GATEWAY_URL", "")
    nats_url = nats_url or scenario.nats_url or environ.get("OCTAVO_NATS_URL", "")
    seed_file = scenario.nats_seed_file or environ.get("OCTAVO_NATS_SEED_FILE", "")
    if scenario.transport is Transport.HTTP:
        field, url, schemes = "gateway_url", gateway_url, ("http", "https")
    else:
        field, url, schemes = "nats_url", nats_url, ("nats", "tls")
    if not url:
        raise InvalidRequest(field, f"is required: set it here, in the scenario or as OCTAVO_{field.upper()}")
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in schemes and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_url = False
    if not is_url:
        raise InvalidRequest(field, f"must be a URL that begins with {' or '.join(f'{one}://' for one in schemes)}")
    return msgspec.structs.replace(scenario, gateway_url=gateway_url, nats_url=nats_url, nats_seed_file=seed_file)


def _check(scenario: Scenario) -> None:
    load = scenario.load
    if load.warmup_s >= load.duration_s:
        raise InvalidRequest("load.warmup_s", "must be below load.duration_s")
    if load.rate_per_s * load.duration_s > NUM_REQUESTS_MAX:
        raise InvalidRequest("load.duration_s", f"gives more than {NUM_REQUESTS_MAX} requests at this rate")
    for index, adapter in enumerate(scenario.adapters):
        if (adapter.num > 1) != ("{i}" in adapter.model):
            raise InvalidRequest(f"adapters[{index}].model", "must hold {i} when num is above 1, and only then")
    if sum(adapter.num for adapter in scenario.adapters) > NUM_ADAPTERS_MAX:
        raise InvalidRequest("adapters", f"name more than {NUM_ADAPTERS_MAX} adapters")
    for index, prompt in enumerate(scenario.prompts):
        least, most = prompt.max_tokens_range
        if not 1 <= least <= most <= _NUM_TOKENS_MAX:
            raise InvalidRequest(
                f"prompts[{index}].max_tokens", f"must be a number or [least, most], from 1 to {_NUM_TOKENS_MAX}"
            )


_PLACE = re.compile(r"(?P<what>.*?)(?: - at `\$(?P<at>[^`]*)`)?\Z", re.DOTALL)
_FIELD = re.compile(r"Object (?P<what>missing required|contains unknown) field `(?P<name>[^`]*)`")

S = TypeVar("S", bound=_Section)


def _convert(raw: Mapping[str, Any], kind: type[S], prefix: str) -> S:
    try:
        return decoding.convert(raw, kind)
    except msgspec.ValidationError as error:
        place = _PLACE.match(str(error))
        assert place is not None
        field, problem = prefix + (place["at"] or ""), f"is wrong: {place['what']}"
        if named := _FIELD.match(place["what"]):
            field += f".{named['name']}"
            problem = "is required" if named["what"].startswith("missing") else "is not a known field"
        raise InvalidRequest(field.strip("."), problem) from None
