"""Verbs on signing keys: register, revoke, list."""

from octavo_identity import access
from octavo_identity.desk import Desk
from octavo_identity.records import KeyHead, SignersHead
from octavo_identity.signers import Signers
from octavo_shared.dsse import PublicKey
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages import signers as messages
from octavo_shared.messages.keys import Scope
from octavo_shared.messages.signers import REGISTRY_PRINCIPAL, SignerInfo
from octavo_shared.references import PRINCIPAL_PATTERN

_PEM_CHARS_MAX = 1_024
_KEY_ID_LENGTH = 64


class SignerVerbs:
    """One method per verb, of the same name."""

    def __init__(self, desk: Desk, signers: Signers) -> None:
        self._desk = desk
        self._signers = signers

    async def register_signer(self, request: messages.RegisterSigner) -> SignerInfo:
        """Register a key under the caller, for good; the same key again changes nothing.

        Needs a key that may push to all that its principal may push to.
        """
        key = await self._desk.authenticate(request.credential)
        if len(request.public_key) > _PEM_CHARS_MAX:
            raise InvalidRequest("public_key", f"is longer than {_PEM_CHARS_MAX} characters")
        public_key = PublicKey.parse(request.public_key)
        head = await self._signers.of(key.principal)
        known = head.find(public_key.key_id)
        if known is None or known.revoked_at_ms is not None:
            access.check_scope(key, Scope.PUSH, "register a signing key")
            head = await self._signers.register(key.principal, public_key, key.principal)
        return _info(head, public_key.key_id)

    async def revoke_signer(self, request: messages.RevokeSigner) -> SignerInfo:
        """End a key of one's own, or, as an admin, anybody's. What it signed before stays verifiable."""
        key = await self._desk.authenticate(request.credential)
        if len(request.key_id) != _KEY_ID_LENGTH:
            raise InvalidRequest("key_id", f"must be {_KEY_ID_LENGTH} hexadecimal digits")
        principal = _check_whose(key, request.principal, "revoke this signing key")
        return _info(await self._signers.revoke(principal, request.key_id, key.principal), request.key_id)

    async def list_signers(self, request: messages.ListSigners) -> messages.SignerList:
        """Show one's own keys, or, to an admin, anybody's. Reads only."""
        key = await self._desk.authenticate(request.credential)
        principal = request.principal or key.principal
        if principal != key.principal:
            principal = _check_whose(key, principal, "list these signing keys")
        head = await self._signers.of(principal)
        return messages.SignerList(tuple(_info(head, one.key_id) for one in head.signers))


def _check_whose(key: KeyHead, principal: str, action: str) -> str:
    whose = principal or key.principal
    if whose != REGISTRY_PRINCIPAL and PRINCIPAL_PATTERN.match(whose) is None:
        raise InvalidRequest("principal", "must have the form user@tenant")
    if whose == key.principal:
        access.check_scope(key, Scope.MANAGE, action)
    else:
        access.check_admin(key, action)
    return whose


def _info(head: SignersHead, key_id: str) -> SignerInfo:
    one = head.find(key_id)
    assert one is not None, "it was found or made a moment ago"
    pem = PublicKey(one.public_key).pem
    return SignerInfo(key_id, head.principal, pem, one.registered_at_ms, one.revoked_at_ms)
