"""How people name adapters: ``tenant/adapter``, ``…@12``, ``…@sha256:…``, ``…:stable``."""

import re
from typing import NewType

import msgspec

from octavo_shared.errors import InvalidRequest

AdapterId = NewType("AdapterId", str)
TenantId = NewType("TenantId", str)
WorkerId = NewType("WorkerId", str)
Digest = NewType("Digest", str)
"""``sha256:`` and 64 hexadecimal digits."""
PackKey = tuple[AdapterId, Digest]
"""What caches know a pack by. The adapter is part of it, so that nobody learns that another holds the same bytes."""
Fingerprint = NewType("Fingerprint", str)
"""Digest of a base model's configuration, tokenizer and weights, in the form of a ``Digest``."""

SERVING = "serving"
"""The alias that a reference without a revision means."""
CANARY = "canary"
"""The alias that such a reference means for a share of the principals."""

_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
NAME_PATTERN = re.compile(rf"{_NAME}\Z")
DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
PRINCIPAL_PATTERN = re.compile(rf"({_NAME}|\*)@{_NAME}\Z")
ADAPTERS_PATTERN = re.compile(rf"{_NAME}/({_NAME}\*?|\*)\Z")
"""``tenant/adapter``, or with a star at the end all whose names begin so."""
_REFERENCE = re.compile(
    rf"(?P<tenant>{_NAME})/(?P<adapter>{_NAME})"
    rf"(?:@(?P<digest>sha256:[0-9a-f]{{64}})|@(?P<number>[1-9][0-9]{{0,8}})|:(?P<alias>{_NAME}))?\Z"
)


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference. At most one of ``number``, ``digest`` and ``alias`` selects the revision."""

    tenant: str
    adapter: str
    number: int | None = None
    digest: Digest | None = None
    alias: str | None = None

    @property
    def name(self) -> str:
        """``tenant/adapter`` without the revision."""
        return f"{self.tenant}/{self.adapter}"

    @property
    def selector(self) -> int | str | None:
        """What selects the revision: its number, its digest or an alias; None where nothing does."""
        return self.number or self.digest or self.alias

    @property
    def names_revision(self) -> bool:
        """Tell whether it says which revision is meant."""
        return self.selector is not None

    def __str__(self) -> str:
        if self.number is not None:
            return f"{self.name}@{self.number}"
        if self.digest is not None:
            return f"{self.name}@{self.digest}"
        return f"{self.name}:{self.alias}" if self.alias else self.name


def parse_reference(text: str, field: str = "model") -> Reference:
    """Return the parts of ``text``; raises ``InvalidRequest`` naming ``field`` when it has another form."""
    match = _REFERENCE.match(text)
    if match is None:
        raise InvalidRequest(
            field,
            "is not a reference of the form tenant/adapter, tenant/adapter@12, "
            "tenant/adapter@sha256:… or tenant/adapter:alias",
        )
    number, digest = match["number"], match["digest"]
    return Reference(
        tenant=match["tenant"],
        adapter=match["adapter"],
        number=int(number) if number else None,
        digest=Digest(digest) if digest else None,
        alias=match["alias"],
    )


def check_name(text: str, field: str) -> str:
    """Return ``text`` when it is a valid tenant, adapter, alias or user name; else ``InvalidRequest``."""
    if NAME_PATTERN.match(text) is None:
        raise InvalidRequest(field, "must match [a-z0-9][a-z0-9._-]{0,62}")
    return text
