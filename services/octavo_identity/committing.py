"""The parts of a commit that ask nobody: what is wrong with a request, and what it makes of an adapter. Pure."""

import msgspec

from octavo_identity.aliases import with_revision
from octavo_identity.building import Built
from octavo_identity.gatekeeper import served
from octavo_identity.ids import Ids
from octavo_identity.records import AdapterHead, KeyHead, StoredRevision
from octavo_identity.registry import Change
from octavo_identity.tags import check_tags, with_tags
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.adapters import Revision
from octavo_shared.messages.pushing import Commit
from octavo_shared.provenance import Made
from octavo_shared.references import Reference, check_name

UPLOAD_AGE_MS_MAX = 45 * 60_000
_NOTE_LENGTH_MAX = 1_024


class Committed(msgspec.Struct, frozen=True):
    """The head that a commit made, or had made before, for ``key``; ``same`` is a revision that was there already."""

    head: AdapterHead
    key: KeyHead
    same: Revision | None = None
    is_new: bool = False

    @property
    def revision(self) -> Revision:
        """What was committed is there as this one."""
        return self.same or max((one.revision for one in self.head.revisions), key=lambda revision: revision.number)


def check_commit(request: Commit, ids: Ids, key: KeyHead, reference: Reference, now_ms: int) -> None:
    """Raise ``InvalidRequest`` for what is wrong with a commit, whatever there is already."""
    check_upload(request.upload_id, ids, key, reference, now_ms)
    if len(request.note) > _NOTE_LENGTH_MAX:
        raise InvalidRequest("note", f"is longer than {_NOTE_LENGTH_MAX} characters")
    if request.alias is not None:
        check_name(request.alias, "alias")
    check_tags(request.tags)


def check_upload(upload_id: str, ids: Ids, key: KeyHead, reference: Reference | None, now_ms: int) -> None:
    """Raise ``InvalidRequest`` when the upload is not the caller's, not for this adapter, or too old."""
    adapter = reference.name if reference else None
    age_ms = ids.upload_age_ms(upload_id, key.principal, adapter, now_ms)
    if age_ms is None:
        whom = "this principal for this adapter" if adapter else "this principal"
        raise InvalidRequest("upload_id", f"was not issued to {whom}")
    if age_ms > UPLOAD_AGE_MS_MAX:
        raise InvalidRequest("upload_id", "is too old: an upload is committed within 45 minutes")


def next_revision(
    head: AdapterHead, request: Commit, pusher: str, built: Built, object_key: str, at_ms: int
) -> StoredRevision:
    """Return what becomes the next revision of ``head``, and whose parent is what that serves."""
    header, parent = built.header, served(head)
    revision = Revision(
        head.num_revisions + 1, built.digest, header.base, len(built.pack), header.rank_max, len(header.modules),
        header.dtype, pusher, at_ms, parent.digest if parent else None, request.note,
    )  # fmt: skip
    return StoredRevision(revision, object_key, parent.number if parent else None)


def made_of(head: AdapterHead, revision: Revision, built: Built) -> Made:
    """Return what the statement about ``revision`` has to agree with."""
    return Made(
        head.name, revision.digest, revision.base, revision.parent, revision.created_by, built.header.config
    )  # fmt: skip


def revision_added(head: AdapterHead, request: Commit, stored: StoredRevision, statement: bytes) -> Change:
    """Return ``head`` with the revision, its alias and its tags; raises ``InvalidRequest`` for one too many."""
    new = with_tags(with_revision(head, stored, request.alias), request.tags)
    return Change("revision_added", new, request.note, stored, statement)
