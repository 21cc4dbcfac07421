"""A push: a staging place, the files in it, and the revision that they become."""

import msgspec

from octavo_shared.envelopes import Envelope
from octavo_shared.messages.requests import Request, Write
from octavo_shared.references import Digest, Fingerprint

UPLOAD_BYTES_MAX = 512 * 1024 * 1024
"""Of one file, unless told otherwise."""


class BeginUpload(Request, frozen=True, kw_only=True):
    """Ask for a staging place for a push to ``adapter`` (``tenant/name``)."""

    adapter: str


class UploadBegun(msgspec.Struct, frozen=True):
    """Files go to ``staging/<upload_id>/<file name>``; unused uploads are swept.

    ``pushed_by``, ``parent`` and ``base`` are what a statement about this push has to say as things are now; the base
    is the gateway's to tell, None where it is not clear.
    """

    upload_id: str
    size_bytes_max: int
    pushed_by: str = ""
    parent: Digest | None = None
    base: Fingerprint | None = None


class CheckUpload(Request, frozen=True, kw_only=True):
    """Ask whether ``upload_id`` was issued to the caller and is still young enough; asked before bytes are staged.

    ``public_key`` (X25519) is made for this one question; without it no key comes back.
    """

    upload_id: str
    public_key: bytes = b""


class UploadChecked(msgspec.Struct, frozen=True):
    """It was, and ``sealed`` holds the key of its files, for the asker (see ``key_transport``).

    The refusal is ``InvalidRequest``.
    """

    upload_id: str
    sealed: bytes = b""


class Commit(Write, frozen=True, kw_only=True):
    """Validate what was staged, store the pack, then make it the adapter's next revision, which ``alias`` names.

    With ``alias`` None no alias moves: the revision is a draft.

    ``declared_base`` is what the pusher says that the adapter was trained on (None: not said);
    ``served_base`` is the base of this deployment. ``dtype`` ``bf16`` stores the small form. ``statement`` is the
    provenance as the pusher signed it; without one the registry makes one and signs alone.
    """

    adapter: str
    upload_id: str
    served_base: Fingerprint
    declared_base: Fingerprint | None = None
    dtype: str | None = None
    note: str = ""
    alias: str | None = "serving"
    tags: tuple[str, ...] = ()
    """Added to those that the adapter has."""
    is_import: bool = False
    """Then what the adapter has with the same digest already is no new revision."""
    statement: Envelope | None = None
