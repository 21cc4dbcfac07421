"""The gateway's client for provenance: statements, descent, signing keys, and pushes that are signed."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from octavo_cli.answers import ClientError
from octavo_cli.client import Client
from octavo_cli.connection import adapter_path, path_part, revision_query
from octavo_cli.pack_client import Progress
from octavo_shared.envelopes import Envelope
from octavo_shared.errors import ParentMoved
from octavo_shared.messages.adapters import AdapterInfo
from octavo_shared.messages.provenance import LINEAGE_MAX, Lineage, Provenance
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.messages.signers import SignerInfo, SignerList
from octavo_shared.references import Digest, parse_reference

_SIGNED_TIMES_MAX = 4

Sign = Callable[[UploadBegun], Envelope]
"""Returns the statement of a push, signed, as things are now."""


class ProvenanceClient(Client):
    """A ``Client`` that also knows how revisions came to be."""

    def provenance(self, reference: str) -> Provenance:
        """Return a revision's statement, the keys that signed it, and whose the gateway says that they are."""
        parsed = parse_reference(reference, "revision")
        url = f"{adapter_path(parsed.name)}/provenance"
        return self._call("GET", url, Provenance, query=revision_query(parsed))

    def lineage(self, adapter: str, num_max: int = LINEAGE_MAX) -> Lineage:
        """Return the revisions that those of ``adapter`` descend from."""
        return self._call("GET", f"/v1/adapters/{adapter}/lineage", Lineage, query={"limit": num_max})

    def signers(self, principal: str = "") -> tuple[SignerInfo, ...]:
        """Return one's own signing keys, or those of ``principal`` (admin)."""
        return self._call("GET", "/v1/signers", SignerList, query={"principal": principal}).signers

    def add_signer(self, pem: str) -> SignerInfo:
        return self._call("POST", "/v1/signers", SignerInfo, {"public_key": pem})

    def revoke_signer(self, key_id: str, principal: str = "") -> SignerInfo:
        return self._call("DELETE", f"/v1/signers/{path_part(key_id)}", SignerInfo, query={"principal": principal})

    def push_signed(
        self,
        adapter: str,
        config: Path,
        weights: Path,
        sign: Sign,
        *,
        base: str | None = None,
        dtype: str | None = None,
        note: str = "",
        alias: str | None = "serving",
        progress: Progress = lambda done, total: None,
    ) -> AdapterInfo:
        """Push with a statement. It is signed again when another revision is served meanwhile, so many times."""
        name = parse_reference(adapter, "adapter").name
        upload = self.begin_upload(name, base)
        # Before anything is sent: what cannot be signed is not pushed either.
        statement = sign(upload)
        self.send(upload, config, weights, progress)
        for _ in range(_SIGNED_TIMES_MAX - 1):
            try:
                return self.commit(name, upload, base=base, dtype=dtype, note=note, alias=alias, statement=statement)
            except ClientError as error:
                if error.code != ParentMoved.code:
                    raise
                parent = Digest(str(error.fields.get("parent", ""))) or None
                upload = msgspec.structs.replace(upload, parent=parent)
                statement = sign(upload)
        return self.commit(name, upload, base=base, dtype=dtype, note=note, alias=alias, statement=statement)
