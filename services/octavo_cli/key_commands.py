"""``octavo keys``: issue, list, rotate and revoke API keys."""

import re
from datetime import UTC, datetime
from typing import Annotated

import typer

from octavo_cli.answers import NewKey
from octavo_cli.client import Client
from octavo_cli.options import Gateway, Key
from octavo_cli.registry_commands import console, table
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.keys import KeyInfo, Role, Scope

key_app = typer.Typer(no_args_is_help=True, help="API keys: one's own, or with the admin key anybody's.")

_DURATION = re.compile(r"([0-9]{1,9})([smhd])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_ALL = "all"

Expires = Annotated[str | None, typer.Option("--expires", help="lifetime, as in 90d, 12h, 30m; default: as long as "
                                             "the key that makes it")]  # fmt: skip


@key_app.command("issue")
def issue(
    gateway: Gateway,
    key: Key,
    principal: Annotated[str, typer.Argument(help="user@tenant; default: oneself")] = "",
    role: Annotated[Role | None, typer.Option(help="default: user, or for oneself that of the key in use")] = None,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="what it is for; several may be given; default: all")
    ] = None,
    adapter: Annotated[str, typer.Option(help="only for tenant/adapter, or tenant/begins-with*")] = "",
    expires: Expires = None,
    label: Annotated[str, typer.Option(help="a note for people")] = "",
) -> None:
    """Issue a key and print its text, which is shown only now."""
    with Client(gateway, key) as client:
        if not principal:
            own = client.whoami()
            principal, role = own.principal, role or own.role
            scope, adapter = scope or list(own.scopes), adapter or own.adapters
        user, _, tenant = principal.partition("@")
        fresh = client.create_key(
            tenant, user, role or Role.USER, scopes=scope or (), adapters=adapter, lifetime_s=seconds(expires),
            label=label,
        )  # fmt: skip
    _show(fresh)


@key_app.command("ls")
def ls(
    gateway: Gateway,
    key: Key,
    principal: Annotated[str, typer.Argument(help="default: oneself; user@tenant or *@tenant (admin, auditor)")] = "",
) -> None:
    """List keys, without their secrets."""
    shown = table("key", "principal", "role", "scopes", "adapters", "label", "state", "issued", "expires", "issued by")
    with Client(gateway, key) as client:
        for one in client.keys(principal):
            scopes = _ALL if len(one.scopes) == len(Scope) else ", ".join(one.scopes)
            shown.add_row(
                one.key_id, one.principal, one.role, scopes, one.adapters or _ALL, one.label, _state(one),
                _date(one.issued_at_ms, ""), _date(one.expires_at_ms, "never"), one.issuer,
            )  # fmt: skip
    console().print(shown)


@key_app.command("rotate")
def rotate(
    gateway: Gateway,
    key: Key,
    key_id: Annotated[str, typer.Argument(help="default: the key in use")] = "",
    overlap: Annotated[str, typer.Option(help="how long the old key still lives, as in 24h, 30m, 0s")] = "24h",
    expires: Annotated[
        str | None, typer.Option(help="lifetime of the new key; default: until the old would end")
    ] = None,
) -> None:
    """Issue a key in place of another, which expires after the overlap."""
    overlap_s = seconds(overlap)
    assert overlap_s is not None, "it has a default"
    with Client(gateway, key) as client:
        fresh = client.rotate_key(key_id or client.whoami().key_id, overlap_s, seconds(expires))
    _show(fresh)
    typer.echo(f"the old key expires in {overlap}", err=True)


@key_app.command("revoke")
def revoke(key_id: str, gateway: Gateway, key: Key) -> None:
    """Revoke a key for ever, from the next request on."""
    with Client(gateway, key) as client:
        typer.echo(f"revoked {client.revoke_key(key_id).key_id}")


def create(tenant: str, user: str, gateway: Gateway, key: Key, role: Role = Role.USER) -> None:
    """Create a key and print its text: ``octavo key create``, which is the older form of ``octavo keys issue``."""
    with Client(gateway, key) as client:
        _show(client.create_key(tenant, user, role))


def seconds(text: str | None) -> int | None:
    """Return what ``90d``, ``12h``, ``30m`` or ``45s`` means; raises ``InvalidRequest``."""
    if text is None:
        return None
    match = _DURATION.match(text)
    if match is None:
        raise InvalidRequest("duration", "must be a whole number and one of s, m, h, d, as in 90d")
    return int(match[1]) * _SECONDS[match[2]]


def _show(fresh: NewKey) -> None:
    typer.echo(fresh.key)
    narrowed = [f"role {fresh.role}"]
    if fresh.scopes:
        narrowed.append(f"for {', '.join(fresh.scopes)}")
    if fresh.adapters:
        narrowed.append(f"on {fresh.adapters}")
    narrowed.append(f"expires {_date(fresh.expires_at_ms, 'never')}")
    typer.echo(f"key {fresh.key_id} of {fresh.principal}, {', '.join(narrowed)}; keep it, it is not shown again",
               err=True)  # fmt: skip


def _state(one: KeyInfo) -> str:
    if one.is_revoked:
        return "revoked"
    if one.is_expired:
        return "expired"
    return f"rotated to {one.successor}" if one.successor else "good"


def _date(at_ms: int, else_text: str) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(" ", "seconds") if at_ms else else_text
