"""The root of all errors, the form in which they travel, and the way back from it."""

import uuid
from typing import ClassVar

import msgspec

Fields = dict[str, str | int | float]


class Refusal(msgspec.Struct, frozen=True):
    """An ``OctavoError`` on the wire."""

    code: str
    message: str
    fields: Fields = {}


class OctavoError(Exception):
    """Base of the tree; never raised itself."""

    code: ClassVar[str]
    http_status: ClassVar[int]
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, **fields: str | int | float) -> None:
        super().__init__(message)
        self.message = message
        self.fields: Fields = fields

    def refusal(self) -> Refusal:
        """Return the form in which this error travels."""
        return Refusal(self.code, self.message, self.fields)


class InternalError(OctavoError):
    code, http_status, is_retryable = "internal", 500, True

    def __init__(self, error_id: str | None = None) -> None:
        error_id = error_id or uuid.uuid4().hex[:12]
        super().__init__(f"internal error {error_id}", error_id=error_id)


def from_refusal(refusal: Refusal) -> OctavoError:
    """Return the error that ``refusal`` names, as its own class; unknown codes become ``InternalError``."""
    leaf = _leaves(OctavoError).get(refusal.code, InternalError)
    error = leaf.__new__(leaf)
    OctavoError.__init__(error, refusal.message, **refusal.fields)
    return error


def _leaves(root: type[OctavoError]) -> dict[str, type[OctavoError]]:
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found |= _leaves(child)
    return found
