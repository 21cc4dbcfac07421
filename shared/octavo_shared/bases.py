"""How people name bases: ``smollm2-135m@0123456789ab``, the name alone where one has it, or the whole fingerprint."""

import re
from collections.abc import Mapping

from octavo_shared.errors import BaseUnknown, InvalidRequest
from octavo_shared.references import DIGEST_PATTERN, Fingerprint

_LABEL_DIGITS = 12
_PREFIX = re.compile(r"[0-9a-f]{6,64}\Z")
_TEXT_LENGTH_MAX = 200
_NAMED_MAX = 8


def base_label(name: str, fingerprint: Fingerprint) -> str:
    """Return what a base is called where people read it, ``name@0123456789ab``; without a name the digits alone."""
    digits = _digits(fingerprint)[:_LABEL_DIGITS]
    return f"{name}@{digits}" if name else digits


def find_base(text: str, names: Mapping[Fingerprint, str], field: str = "base") -> Fingerprint:
    """Return the one of ``names`` (fingerprint → name) that ``text`` means.

    Raises ``BaseUnknown`` when it is none of them, and ``InvalidRequest`` naming ``field`` when it may be several.
    """
    if len(text) > _TEXT_LENGTH_MAX:
        raise InvalidRequest(field, f"is longer than {_TEXT_LENGTH_MAX} characters")
    if DIGEST_PATTERN.match(text) is not None:
        if text not in names:
            raise BaseUnknown(text)
        return Fingerprint(text)
    found = [one for one, name in names.items() if _is_meant(text, name, _digits(one))]
    if not found:
        raise BaseUnknown(text)
    if len(found) > 1:
        raise InvalidRequest(field, f"may be several bases: {labels_of({one: names[one] for one in found})}; name one")
    return found[0]


def labels_of(names: Mapping[Fingerprint, str]) -> str:
    """Return the labels of some bases in one line, ordered, and cut where there are many."""
    labels = sorted(base_label(name, fingerprint) for fingerprint, name in names.items())
    more = f" and {len(labels) - _NAMED_MAX} more" if len(labels) > _NAMED_MAX else ""
    return ", ".join(labels[:_NAMED_MAX]) + more


def _is_meant(text: str, name: str, digits: str) -> bool:
    if text == name:
        return True
    said_name, _, said = text.rpartition("@")
    return _PREFIX.match(said) is not None and digits.startswith(said) and said_name in ("", name)


def _digits(fingerprint: Fingerprint) -> str:
    return fingerprint.removeprefix("sha256:")
