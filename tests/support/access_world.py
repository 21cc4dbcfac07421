"""Everybody who may come to identity, each with a key of a kind and an adapter of alice's that they have a role on."""

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_identity.records import KeyHead, RegistryEvent
from octavo_shared import subjects
from octavo_shared.clock import wall_ms
from octavo_shared.config import StoreSettings
from octavo_shared.messages.grants import GrantRole
from octavo_shared.messages.keys import Role, Scope
from octavo_shared.messages.requests import Credential
from support.identity_rig import Client, own_identity

OWNER = "alice@home"


class Who(StrEnum):
    """The columns of the table. What is good of a key comes first, what is no key comes last."""

    OWNER = "owner"
    EDITOR = "editor"
    USER = "user"
    AUDITOR = "auditor"
    TENANT_AUDITOR = "tenant's auditor"
    ADMIN = "admin"
    OTHER = "other tenant"
    ONLY_USE = "owner: use"
    ONLY_PUSH = "owner: push"
    ONLY_MANAGE = "owner: manage"
    ONLY_AUDIT = "owner: audit"
    ELSEWHERE = "owner: elsewhere"
    EXPIRED = "expired key"
    REVOKED = "revoked key"
    FORGED = "forged key"
    UNKNOWN = "unknown key"
    NO_KEY = "no key"


NO_KEYS = (Who.EXPIRED, Who.REVOKED, Who.FORGED, Who.UNKNOWN, Who.NO_KEY)
"""Those that all get one answer to everything."""
LIVE = tuple(who for who in Who if who not in NO_KEYS)


@dataclass(frozen=True)
class KeyText:
    """A key as its holder has it."""

    key_id: str
    secret: bytes

    @property
    def text(self) -> str:
        return f"oct_{self.key_id}_{self.secret.hex()}"

    @property
    def credential(self) -> Credential:
        return Credential(self.key_id, hashlib.sha256(self.secret).digest())

    @classmethod
    def fresh(cls) -> "KeyText":
        return cls(secrets.token_hex(8), secrets.token_bytes(32))


@dataclass(frozen=True)
class Person:
    """Somebody of the table: whose key it is, how it is narrowed, and the adapter that they have their role on."""

    who: Who
    principal: str
    role: Role
    scopes: tuple[Scope, ...]
    adapters: str
    key: KeyText
    client: Client

    @property
    def user(self) -> str:
        return self.principal.partition("@")[0]

    @property
    def tenant(self) -> str:
        return self.principal.partition("@")[2]

    @property
    def adapter(self) -> str:
        """An adapter of alice's of this column's own, so that no column is in the way of another."""
        return f"home/for-{''.join(letter for letter in self.who if letter.isalpha())}"


@dataclass
class AccessWorld:
    """Identity, its administrator, and everybody."""

    admin: Client
    alice: Client
    ids: Ids
    people: dict[Who, Person] = field(default_factory=dict)

    async def key_for(self, person: Person) -> KeyText:
        """Return another key of the same principal, narrowed in the same way."""
        return await self.issue(person.principal, person.role, person.scopes, person.adapters)

    async def issue(self, principal: str, role: Role, scopes: tuple[Scope, ...] = (), adapters: str = "") -> KeyText:
        key = KeyText.fresh()
        user, _, tenant = principal.partition("@")
        await self.admin.ask(
            "issue_key", tenant=tenant, user=user, role=role, scopes=scopes, adapters=adapters, key_id=key.key_id,
            secret_sha256=key.credential.secret_sha256,
        )  # fmt: skip
        return key

    async def expired(self) -> KeyText:
        """Return a key of alice's whose time is over since a moment ago."""
        key, now_ms = KeyText.fresh(), wall_ms()
        head = KeyHead(key.key_id, key.credential.secret_sha256, OWNER, "home", Role.OWNER,
                       issued_at_ms=now_ms - 1_000, expires_at_ms=now_ms)  # fmt: skip
        event = RegistryEvent("key_issued", "admin@octavo", now_ms, 0, head)
        await HeadStore(self.admin.bus, 1).append(subjects.key_head(key.key_id), event)
        return key


_KINDS: dict[Who, tuple[str, Role, tuple[Scope, ...], str]] = {
    Who.OWNER: (OWNER, Role.OWNER, (), ""),
    Who.EDITOR: ("ed@away", Role.OWNER, (), ""),
    Who.USER: ("una@away", Role.OWNER, (), ""),
    Who.AUDITOR: ("abe@away", Role.OWNER, (), ""),
    Who.TENANT_AUDITOR: ("tess@home", Role.AUDITOR, (), ""),
    Who.ADMIN: ("root@home", Role.ADMIN, (), ""),
    Who.OTHER: ("mallory@away", Role.OWNER, (), ""),
    Who.ONLY_USE: (OWNER, Role.OWNER, (Scope.USE,), ""),
    Who.ONLY_PUSH: (OWNER, Role.OWNER, (Scope.PUSH,), ""),
    Who.ONLY_MANAGE: (OWNER, Role.OWNER, (Scope.MANAGE,), ""),
    Who.ONLY_AUDIT: (OWNER, Role.OWNER, (Scope.AUDIT,), ""),
    Who.ELSEWHERE: (OWNER, Role.OWNER, (), "home/elsewhere*"),
}
_GRANTED = {Who.EDITOR: GrantRole.EDITOR, Who.USER: GrantRole.USER, Who.AUDITOR: GrantRole.AUDITOR}


@asynccontextmanager
async def access_world(settings: StoreSettings, folder: Path) -> AsyncIterator[AccessWorld]:
    """Run identity, and make everybody of ``Who`` with an adapter that has a served revision and a draft."""
    async with own_identity(settings, folder) as admin:
        alice = await admin.new_key("home", "alice")
        world = AccessWorld(admin, alice, Ids(load_secret(folder / "identity")))
        for who in LIVE:
            principal, role, scopes, adapters = _KINDS[who]
            key = await world.issue(principal, role, scopes, adapters)
            world.people[who] = _person(world, who, key, (principal, role, scopes, adapters))
        revoked, forged = await world.issue(OWNER, Role.OWNER), await world.issue(OWNER, Role.OWNER)
        await admin.ask("revoke_key", key_id=revoked.key_id)
        keys = {
            Who.EXPIRED: await world.expired(),
            Who.REVOKED: revoked,
            Who.FORGED: KeyText(forged.key_id, secrets.token_bytes(32)),
            Who.UNKNOWN: KeyText.fresh(),
            Who.NO_KEY: KeyText("", b""),
        }
        for who, key in keys.items():
            world.people[who] = _person(world, who, key, _KINDS[Who.OWNER])
        for person in world.people.values():
            await alice.push(person.adapter, 1)
            await alice.push(person.adapter, 2, alias=None)
            if granted := _GRANTED.get(person.who):
                await alice.ask("grant", adapter=person.adapter, principal=person.principal, role=granted)
        yield world


def _person(world: AccessWorld, who: Who, key: KeyText, kind: tuple[str, Role, tuple[Scope, ...], str]) -> Person:
    credential = Credential("", b"") if who is Who.NO_KEY else key.credential
    return Person(who, *kind, key, Client(world.admin.bus, world.admin.store, credential))
