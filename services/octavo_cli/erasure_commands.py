"""The command that destroys an adapter."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from octavo_cli.answers import ClientError
from octavo_cli.client import Client
from octavo_cli.options import Adapter, Gateway, Key
from octavo_shared import dsse
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.privacy import RECEIPT_TYPE, Receipt
from octavo_shared.references import AdapterId


def erase(
    adapter: Adapter,
    gateway: Gateway,
    key: Key,
    is_sure: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    receipt: Annotated[Path | None, typer.Option(help="file to write the signed receipt to", dir_okay=False)] = None,
) -> None:
    """Destroy an adapter for ever: all revisions, their keys, and every copy on every worker."""
    if not is_sure:
        typer.confirm(f"erase {adapter} with all its revisions? There is no way back", abort=True)
    with Client(gateway, key) as client:
        erased = client.erase(adapter)
    said = open_receipt(erased.receipt, erased.public_key, erased.adapter_id)
    if receipt is not None:
        receipt.write_bytes(dsse.encode(erased.receipt) + b"\n")
    typer.echo(f"erased {adapter}: its data key, {said.num_packs} packs, {said.num_uploads} uploads under way")
    typer.echo(f"workers that hold nothing of it any more: {', '.join(said.acknowledged) or 'none was there'}")
    if said.fenced:
        until = datetime.fromtimestamp(said.fenced_until_ms / 1000).astimezone().isoformat(" ", "seconds")
        typer.echo(f"workers that did not answer: {', '.join(said.fenced)}; they hold nothing after {until}")


def open_receipt(envelope: dsse.Envelope, public_key: str, adapter_id: AdapterId) -> Receipt:
    """Return what a receipt says, if that key signed it for that adapter; raises ``ClientError``."""
    try:
        dsse.verify(envelope, [dsse.PublicKey.parse(public_key)])
        said = dsse.parse_json(envelope.data, Receipt, "receipt")
    except InvalidRequest as error:
        raise ClientError("bad_receipt", error.message, 0) from None
    if envelope.payload_type != RECEIPT_TYPE or said.adapter_id != adapter_id:
        raise ClientError("bad_receipt", "what was signed is no receipt for this adapter", 0)
    return said
