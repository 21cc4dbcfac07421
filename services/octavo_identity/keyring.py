"""Verbs on keys: issue, rotate, revoke, list, and say what one is. No secret ever comes here, only its hash."""

import asyncio

import msgspec

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.keys import has_expired, is_key_id
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_identity.rights import scopes_of
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest, NotPermitted, RevisionConflict
from octavo_shared.messages import keys as messages
from octavo_shared.references import ADAPTERS_PATTERN, PRINCIPAL_PATTERN, check_name

_SECRET_HASH_BYTES = 32
_LABEL_LENGTH_MAX = 64
_READS_MAX = 16
_ATTEMPTS_MAX = 8


class Keyring:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def whoami(self, request: messages.Whoami) -> messages.KeyInfo:
        """Say what the caller's key is. Reads only."""
        return _info(await self._desk.authenticate(request.credential), wall_ms())

    async def issue_key(self, request: messages.IssueKey) -> messages.KeyIssued:
        """Record a key that the gateway made; the same key again changes nothing.

        Raises ``NotPermitted`` when one who is no admin asks for another's key, or anybody for one that may do more
        than the key in use, and ``InvalidRequest`` for one that would outlive it.
        """
        key = await self._desk.authenticate(request.credential)
        principal = f"{check_name(request.user, 'user')}@{check_name(request.tenant, 'tenant')}"
        if request.adapters and ADAPTERS_PATTERN.match(request.adapters) is None:
            raise InvalidRequest("adapters", "must be tenant/adapter, tenant/begins-with* or tenant/*")
        if len(request.label) > _LABEL_LENGTH_MAX or not request.label.isprintable():
            raise InvalidRequest("label", f"must have at most {_LABEL_LENGTH_MAX} printable characters")
        now_ms = wall_ms()
        new = KeyHead(
            request.key_id, request.secret_sha256, principal, request.tenant, request.role,
            scopes=tuple(sorted(set(request.scopes))), adapters=request.adapters, label=request.label,
            issued_at_ms=now_ms, issuer=key.key_id,
        )  # fmt: skip
        access.check_issue_key(key, new)
        expires_at_ms = _expiry(key, request.lifetime_s, now_ms, key.expires_at_ms)
        new = msgspec.structs.replace(new, expires_at_ms=expires_at_ms)
        if not await self._desk.has_tenant(request.tenant):
            raise InvalidRequest("tenant", "does not exist")
        return _issued(await self._add(key, new))

    async def rotate_key(self, request: messages.RotateKey) -> messages.KeyIssued:
        """Issue a key's successor and let the old key expire after the overlap; the same one again changes nothing.

        Every key rotates itself; another one is for whoever may issue its like. Raises ``NotPermitted``, also for a key
        that is not there, and ``InvalidRequest`` for one that has ended or was rotated already.
        """
        key = await self._desk.authenticate(request.credential)
        if not 0 <= request.overlap_s <= messages.OVERLAP_S_MAX:
            raise InvalidRequest("overlap_s", f"must be 0 to {messages.OVERLAP_S_MAX}")
        old, sequence = await self._read(request.key_id, "rotate this key")
        now_ms = wall_ms()
        new = msgspec.structs.replace(
            old, key_id=request.new_key_id, secret_sha256=request.secret_sha256, issued_at_ms=now_ms, issuer=key.key_id
        )
        if key.key_id != old.key_id:
            _check_rotate(key, new)
        expires_at_ms = _expiry(key, request.lifetime_s, now_ms, old.expires_at_ms)
        new = msgspec.structs.replace(new, expires_at_ms=expires_at_ms)
        if old.successor == request.new_key_id:
            return _issued((await self._read(old.successor, "rotate this key"))[0])
        if old.is_revoked or has_expired(old, now_ms):
            raise InvalidRequest("key_id", "has ended already; issue another one")
        if old.successor:
            raise InvalidRequest("key_id", "was rotated already; rotate its successor")
        # First the new one: if the second write fails, there is a key too many, whose secret nobody was told.
        new = await self._add(key, new)
        ends_at_ms = now_ms + request.overlap_s * 1000
        ends_at_ms = min(ends_at_ms, old.expires_at_ms or ends_at_ms)
        ending = msgspec.structs.replace(old, expires_at_ms=ends_at_ms, successor=new.key_id)
        await self._append(RegistryEvent("key_rotated", key.principal, now_ms, sequence, ending))
        return _issued(new)

    async def revoke_key(self, request: messages.RevokeKey) -> messages.KeyIssued:
        """Revoke a key for ever; effective with the next request that uses it. Idempotent.

        Raises ``NotPermitted``, also for a key that is not there.
        """
        key = await self._desk.authenticate(request.credential)
        for _ in range(_ATTEMPTS_MAX):
            head, sequence = await self._read(request.key_id, "revoke this key")
            if not access.may_end_key(key, head):
                raise NotPermitted("revoke this key")
            if head.is_revoked:
                return _issued(head)
            revoked = msgspec.structs.replace(head, is_revoked=True)
            try:
                await self._append(RegistryEvent("key_revoked", key.principal, wall_ms(), sequence, revoked))
            except RevisionConflict:
                # It was rotated or revoked at the same time; a revocation must not be lost to that.
                continue
            return _issued(revoked)
        raise RevisionConflict("the key changed at the same time; look again and retry")

    async def list_keys(self, request: messages.ListKeys) -> messages.KeyList:
        """Return keys by id, as the leader has them now; which there are is from the view of the registry."""
        key = await self._desk.authenticate(request.credential)
        principal = request.principal or key.principal
        if PRINCIPAL_PATTERN.match(principal) is None:
            raise InvalidRequest("principal", "must have the form user@tenant or *@tenant")
        if not 1 <= request.num_max <= messages.KEYS_PAGE_MAX:
            raise InvalidRequest("limit", f"must be 1 to {messages.KEYS_PAGE_MAX}")
        if request.after and not is_key_id(request.after):
            raise InvalidRequest("after", "must be the id of a key, as the page before said")
        access.check_list_keys(key, principal)
        await self._desk.projection.read_own_writes()
        key_ids = await self._desk.projection.find_keys(principal, request.after, request.num_max)
        slots = asyncio.Semaphore(_READS_MAX)

        async def read(key_id: str) -> KeyHead:
            async with slots:
                return (await self._read(key_id, "list these keys"))[0]

        heads = await asyncio.gather(*(read(key_id) for key_id in key_ids))
        now_ms = wall_ms()
        next_after = key_ids[-1] if len(key_ids) == request.num_max else ""
        return messages.KeyList(tuple(_info(head, now_ms) for head in heads), next_after)

    async def _read(self, key_id: str, action: str) -> tuple[KeyHead, int]:
        if not is_key_id(key_id):
            raise InvalidRequest("key_id", "is malformed")
        found = await self._desk.heads.read(subjects.key_head(key_id))
        head = found[0].head if found else None
        if found is None or not isinstance(head, KeyHead):
            raise NotPermitted(action)
        return head, found[1]

    async def _add(self, key: KeyHead, new: KeyHead) -> KeyHead:
        """Record ``new``, or return the key that is there if it is the same but for its times."""
        if not is_key_id(new.key_id) or len(new.secret_sha256) != _SECRET_HASH_BYTES:
            raise InvalidRequest("key_id", "is malformed")
        try:
            await self._append(RegistryEvent("key_issued", key.principal, new.issued_at_ms, 0, new))
        except RevisionConflict:
            found = await self._desk.heads.read(subjects.key_head(new.key_id))
            head = found[0].head if found else None
            if not isinstance(head, KeyHead) or _timeless(head) != _timeless(new):
                raise
            return head
        return new

    async def _append(self, event: RegistryEvent) -> None:
        assert isinstance(event.head, KeyHead), "these are events of keys"
        sequence = await self._desk.heads.append(subjects.key_head(event.head.key_id), event)
        self._desk.projection.expect(sequence)


def _expiry(key: KeyHead, lifetime_s: int | None, now_ms: int, else_ms: int) -> int:
    """Return when a new key expires that ``key`` makes: never after ``key`` itself."""
    if lifetime_s is None:
        expires_at_ms = else_ms
    elif 1 <= lifetime_s <= messages.LIFETIME_S_MAX:
        expires_at_ms = now_ms + lifetime_s * 1000
    else:
        raise InvalidRequest("lifetime_s", f"must be 1 to {messages.LIFETIME_S_MAX}")
    if key.expires_at_ms and not 0 < expires_at_ms <= key.expires_at_ms:
        raise InvalidRequest("lifetime_s", "would have the key outlive the one that makes it")
    return expires_at_ms


def _check_rotate(key: KeyHead, new: KeyHead) -> None:
    try:
        access.check_issue_key(key, new)
    except NotPermitted:
        # Whoever rotates a key holds its successor. A key of others is answered as one that is not there.
        raise NotPermitted("rotate this key") from None


def _timeless(head: KeyHead) -> KeyHead:
    return msgspec.structs.replace(head, issued_at_ms=0, expires_at_ms=0)


def _issued(head: KeyHead) -> messages.KeyIssued:
    return messages.KeyIssued(
        head.key_id, head.principal, head.role, head.scopes, head.adapters, head.expires_at_ms, head.label
    )


def _info(head: KeyHead, now_ms: int) -> messages.KeyInfo:
    return messages.KeyInfo(
        head.key_id, head.principal, head.role, scopes_of(head), head.adapters, head.label, head.is_revoked,
        has_expired(head, now_ms), head.issued_at_ms, head.expires_at_ms, head.issuer, head.successor,
    )  # fmt: skip
