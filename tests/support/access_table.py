"""Who may ask identity for what: a row for each verb. Every verb of ``VERBS`` must have one.

To add a verb: a line in ``TABLE`` (a verb that behaves in two ways gets a line for each, told apart by words behind
it), what is asked in ``REQUESTS`` under the same name, and the line that the failing test prints in the README.

``yes`` is an answer, ``no`` is ``not_permitted``, and ``404`` is ``adapter_not_found``, which must be the same answer
as for an adapter that is not there. Whoever has no good key is refused everything; no line says so.
"""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo_shared.clock import wall_ms
from octavo_shared.dsse import Signer
from octavo_shared.manifest import publish_base
from octavo_shared.messages.evaluation import Metric, Score
from octavo_shared.messages.importing import ImportItem
from octavo_shared.messages.keys import Role
from octavo_shared.messages.usage import Quota
from octavo_shared.references import Fingerprint
from support.access_world import LIVE, AccessWorld, KeyText, Person, Who
from support.adapters import TINY_BASE, TINY_FINGERPRINT
from support.identity_rig import Client, data_keys

TABLE = """
                        owner  editor user   audit. t-aud. admin  other | use    push   manage audit  elsewhere
resolve                 yes    yes    yes    no     no     404    404     yes    no     no     no     404
resolve the base        yes    yes    yes    yes    no     yes    yes     yes    no     no     no     no
locate                  yes    no     no     no     no     yes    404     no     no     yes    no     404
list                    yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
history                 yes    yes    yes    yes    yes    404    404     yes    yes    yes    yes    404
prove                   yes    no     no     yes    yes    yes    404     no     no     no     yes    404
audit                   no     no     no     no     yes    yes    no      no     no     no     no     no
audit_state             no     no     no     no     yes    yes    no      no     no     no     no     no
begin_upload            yes    yes    no     no     no     404    404     no     yes    no     no     404
check_upload            yes    yes    yes    yes    no     yes    yes     no     yes    no     no     yes
commit                  yes    yes    no     no     no     404    404     no     yes    no     no     404
register                yes    yes    no     no     no     404    404     no     yes    no     no     404
promote                 yes    yes    no     no     no     404    404     no     yes    no     no     404
rollback                yes    yes    no     no     no     404    404     no     yes    no     no     404
unalias                 yes    yes    no     no     no     404    404     no     yes    no     no     404
tag                     yes    yes    no     no     no     404    404     no     yes    no     no     404
branch                  yes    yes    yes    no     no     404    404     no     no     no     no     404
retire                  yes    no     no     no     no     404    404     no     no     yes    no     404
evaluate                yes    yes    no     no     no     404    404     no     yes    no     no     404
evaluations             yes    yes    yes    yes    yes    404    404     yes    yes    yes    yes    404
get_gate                yes    yes    yes    yes    yes    404    404     yes    yes    yes    yes    404
get_gate of a tenant    yes    no     no     no     yes    yes    no      yes    yes    yes    yes    yes
set_gate                yes    no     no     no     no     404    404     no     no     yes    no     404
set_gate of a tenant    no     no     no     no     no     yes    no      no     no     no     no     no
grant                   yes    no     no     no     no     404    404     no     no     yes    no     404
revoke                  yes    no     no     no     no     404    404     no     no     yes    no     404
whoami                  yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
issue_key               yes    yes    yes    yes    yes    yes    yes     no     no     yes    no     yes
issue_key to others     no     no     no     no     no     yes    no      no     no     no     no     no
rotate_key of others    no     no     no     no     no     yes    no      no     no     no     no     no
rotate_key              yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
revoke_key              yes    yes    yes    yes    yes    yes    yes     no     no     yes    no     yes
revoke_key of others    no     no     no     no     no     yes    no      no     no     no     no     no
list_keys               yes    yes    yes    yes    yes    yes    yes     no     no     yes    no     no
list_keys of a tenant   no     no     no     no     yes    yes    no      no     no     no     no     no
register_signer         yes    yes    yes    yes    no     yes    yes     no     yes    no     no     no
revoke_signer           yes    yes    yes    yes    yes    yes    yes     no     no     yes    no     no
revoke_signer of others no     no     no     no     no     yes    no      no     no     no     no     no
list_signers            yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
list_signers of others  no     no     no     no     no     yes    no      no     no     no     no     no
provenance              yes    yes    yes    yes    yes    404    404     yes    yes    yes    yes    404
lineage                 yes    yes    yes    yes    yes    404    404     yes    yes    yes    yes    404
usage                   yes    no     no     yes    yes    yes    404    no     no     no     yes    404
usage of a tenant       yes    no     no     no     yes    yes    no     no     no     no     yes    no
set_quota               no     no     no     no     no     yes    no     no     no     no     no     no
create_tenant           no     no     no     no     no     yes    no      no     no     no     no     no
bases                   yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
bases of a tenant       yes    no     no     no     yes    yes    no      yes    yes    yes    yes    yes
outdated                yes    yes    yes    yes    yes    yes    yes     yes    yes    yes    yes    yes
supersede_base          no     no     no     no     no     yes    no      no     no     no     no     no
retire_base             no     no     no     no     no     yes    no      no     no     no     no     no
restore_base            no     no     no     no     no     yes    no      no     no     no     no     no
transfer                yes    no     no     no     no     yes    404     no     no     yes    no     404
erase                   yes    no     no     no     no     yes    404     no     no     yes    no     404
"""

TELLS_WHAT_IS_TAKEN = {("begin_upload", Who.ADMIN), ("commit", Who.ADMIN), ("register", Who.ADMIN)}
"""Whoever may begin an adapter learns that its name is taken (decision 0002), so there 404 is not the one answer."""

CODES = {"yes": "", "no": "not_permitted", "404": "adapter_not_found"}


@dataclass(frozen=True)
class Cell:
    """One question to put: ``person`` asks ``row`` about ``adapter``."""

    world: AccessWorld
    person: Person
    expected: str
    adapter: str

    @property
    def upload(self) -> str:
        """The id of an upload that identity gave to this person for this adapter, a moment ago."""
        return self.world.ids.upload(self.person.principal, self.adapter, wall_ms())

    async def staged(self) -> str:
        """Return an upload that may be committed; only who may commit is worth the bytes."""
        return await self.person.client.stage(self.adapter) if self.expected == "yes" else self.upload


Ask = Callable[[Cell], Awaitable[dict[str, Any]]]


def _asking(**fields: Any) -> Ask:
    """Return what asks with these fields; ``{}`` is the adapter, ``{own}`` something new of the caller's own tenant."""

    async def ask(cell: Cell) -> dict[str, Any]:
        own = f"{cell.person.tenant}/new-{secrets.token_hex(4)}"
        return {name: text.format(cell.adapter, own=own) if isinstance(text, str) else text
                for name, text in fields.items()}  # fmt: skip

    return ask


async def _upload(cell: Cell) -> dict[str, Any]:
    upload_id, ids = cell.upload, cell.world.ids
    if cell.expected == "yes":
        # As ``begin_upload`` does, which not everybody may ask who may stage what they were given.
        keys = data_keys(cell.world.admin.bus, ids)
        await keys.make_for_upload(ids.tenant("home"), ids.adapter(*cell.adapter.split("/")), upload_id)
    return {"upload_id": upload_id}


async def _commit(cell: Cell) -> dict[str, Any]:
    return {"adapter": cell.adapter, "upload_id": await cell.staged(), "served_base": TINY_FINGERPRINT}


async def _register(cell: Cell) -> dict[str, Any]:
    return {"items": (ImportItem(cell.adapter, secrets.token_hex(8), TINY_FINGERPRINT),)}


async def _unalias(cell: Cell) -> dict[str, Any]:
    if cell.expected == "yes":
        await cell.world.alice.ask("promote", reference=f"{cell.adapter}@1", alias="gone")
    return {"adapter": cell.adapter, "alias": "gone"}


def _new_key(tenant: str, user: str, like: Person) -> dict[str, Any]:
    key = KeyText.fresh()
    return {"tenant": tenant, "user": user, "role": like.role, "scopes": like.scopes, "adapters": like.adapters,
            "key_id": key.key_id, "secret_sha256": key.credential.secret_sha256}  # fmt: skip


async def _issue(cell: Cell) -> dict[str, Any]:
    return _new_key(cell.person.tenant, cell.person.user, cell.person)


async def _issue_to_others(cell: Cell) -> dict[str, Any]:
    return _new_key(cell.person.tenant, "somebody-else", cell.person)


async def _rotate(cell: Cell) -> dict[str, Any]:
    key = KeyText.fresh()
    return {"key_id": cell.person.key.key_id or "0" * 16, "new_key_id": key.key_id,
            "secret_sha256": key.credential.secret_sha256}  # fmt: skip


async def _key_of_others(cell: Cell) -> str:
    return (await cell.world.issue("carol@home", Role.USER)).key_id


async def _rotate_of_others(cell: Cell) -> dict[str, Any]:
    return await _rotate(cell) | {"key_id": await _key_of_others(cell)}


async def _revoke_key(cell: Cell) -> dict[str, Any]:
    return {"key_id": (await cell.world.key_for(cell.person)).key_id}


async def _revoke_key_of_others(cell: Cell) -> dict[str, Any]:
    return {"key_id": await _key_of_others(cell)}


def _fresh_pem() -> str:
    return Signer(secrets.token_bytes(32)).public_key.pem


async def _register_signer(cell: Cell) -> dict[str, Any]:
    return {"public_key": _fresh_pem()}


async def _signer_of(cell: Cell, principal: str) -> dict[str, Any]:
    """Return a signing key to revoke; only where that succeeds there is one."""
    if cell.expected != "yes":
        return {"key_id": "0" * 64}
    key = await cell.world.issue(principal, Role.OWNER)
    client = Client(cell.world.admin.bus, cell.world.admin.store, key.credential)
    return {"key_id": (await client.ask("register_signer", public_key=_fresh_pem())).key_id}


async def _revoke_signer(cell: Cell) -> dict[str, Any]:
    return await _signer_of(cell, cell.person.principal)


async def _revoke_signer_of_others(cell: Cell) -> dict[str, Any]:
    return await _signer_of(cell, "carol@home") | {"principal": "carol@home"}


async def _create_tenant(cell: Cell) -> dict[str, Any]:
    return {"tenant": f"new-{secrets.token_hex(4)}"}


async def _transfer(cell: Cell) -> dict[str, Any]:
    """Return something of alice's to give away; only where that succeeds, as it is hers no more then."""
    name = cell.adapter
    if cell.expected == "yes":
        await _key_of_others(cell)
        name = f"home/given-{secrets.token_hex(4)}"
        await cell.world.alice.push(name)
    return {"adapter": name, "owner": "carol@home"}


async def _fresh_base(cell: Cell) -> dict[str, Any]:
    """Return a base of this question's own: what becomes of it is nothing to the others."""
    fingerprint = Fingerprint(f"sha256:{secrets.token_hex(32)}")
    manifest = msgspec.structs.replace(TINY_BASE, fingerprint=fingerprint)
    await publish_base(cell.world.admin.store, manifest, b"{}")
    return {"base": fingerprint}


async def _supersede(cell: Cell) -> dict[str, Any]:
    return await _fresh_base(cell) | {"by": (await _fresh_base(cell))["base"]}


REQUESTS: dict[str, Ask] = {
    "resolve": _asking(reference="{}"),
    "resolve the base": _asking(),
    "locate": _asking(reference="{}"),
    "list": _asking(),
    "history": _asking(adapter="{}"),
    "prove": _asking(reference="{}@1"),
    "audit": _asking(first=1),
    "audit_state": _asking(),
    "begin_upload": _asking(adapter="{}"),
    "check_upload": _upload,
    "commit": _commit,
    "register": _register,
    "promote": _asking(reference="{}@1", alias="stable"),
    "rollback": _asking(adapter="{}", number=1),
    "unalias": _unalias,
    "tag": _asking(adapter="{}", add=("work",)),
    "branch": _asking(source="{}@1", adapter="{own}"),
    "retire": _asking(adapter="{}", number=2),
    "evaluate": _asking(
        reference="{}@1",
        suite="manners",
        suite_digest=f"sha256:{1:064x}",
        base=TINY_FINGERPRINT,
        scores=(Score(Metric.PASSED, 1.0, 1),),
    ),
    "evaluations": _asking(reference="{}@1"),
    "get_gate": _asking(target="{}"),
    "get_gate of a tenant": _asking(target="home"),
    "set_gate": _asking(target="{}", gate=None),
    "set_gate of a tenant": _asking(target="home", gate=None),
    "grant": _asking(adapter="{}", principal="guest@away"),
    "revoke": _asking(adapter="{}", principal="guest@away"),
    "whoami": _asking(),
    "issue_key": _issue,
    "issue_key to others": _issue_to_others,
    "rotate_key": _rotate,
    "rotate_key of others": _rotate_of_others,
    "revoke_key": _revoke_key,
    "revoke_key of others": _revoke_key_of_others,
    "list_keys": _asking(),
    "list_keys of a tenant": _asking(principal="*@home"),
    "register_signer": _register_signer,
    "revoke_signer": _revoke_signer,
    "revoke_signer of others": _revoke_signer_of_others,
    "list_signers": _asking(),
    "list_signers of others": _asking(principal="carol@home"),
    "provenance": _asking(reference="{}@1"),
    "lineage": _asking(adapter="{}"),
    "usage": _asking(target="{}"),
    "usage of a tenant": _asking(target="home"),
    "set_quota": _asking(tenant="home", limits={Quota.ADAPTERS: None}),
    "create_tenant": _create_tenant,
    "bases": _asking(),
    "bases of a tenant": _asking(tenant="home"),
    "outdated": _asking(),
    "supersede_base": _supersede,
    "retire_base": _fresh_base,
    "restore_base": _fresh_base,
    "transfer": _transfer,
    "erase": _asking(adapter="{}"),
}


def rows() -> dict[str, dict[Who, str]]:
    """Return the table: row → who → what is expected."""
    found = {}
    for line in TABLE.strip().splitlines()[1:]:
        name, cells = line[:24].strip(), line[24:].split()
        assert len(cells) == len(LIVE), f"a cell is missing: {line}"
        assert set(cells) <= set(CODES), f"a cell is unknown: {line}"
        found[name] = dict(zip(LIVE, cells, strict=True))
    return found


README_COLUMNS = (Who.OWNER, Who.EDITOR, Who.USER, Who.AUDITOR, Who.TENANT_AUDITOR, Who.ADMIN)


def readme_lines() -> list[str]:
    """Return the part of the table that the README shows."""
    lines = ["| | " + " | ".join(README_COLUMNS) + " |", "|---" * (len(README_COLUMNS) + 1) + "|"]
    for name, row in rows().items():
        verb, _, words = name.partition(" ")
        first = f"`{verb}` {words}".strip()
        lines.append(f"| {first} | " + " | ".join(row[who] for who in README_COLUMNS) + " |")
    return lines
