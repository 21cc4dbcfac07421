"""Every NATS subject, spelt once.

Subjects address services and workers, never adapters; the registry's own stream is the one exception,
and it uses derived ids, so a tenant's or an adapter's name never shows up in a subject.
"""

PREFIX = "octavo.v1"

GENERATE = f"{PREFIX}.generate"
"""Public entry: OpenAI JSON in, JSON chunks out. Queue group ``GATEWAY_QUEUE``."""

HEARTBEAT = f"{PREFIX}.fleet.heartbeat"
DEMAND = f"{PREFIX}.fleet.demand"
PLACEMENT = f"{PREFIX}.fleet.placement"
LEASE = f"{PREFIX}.fleet.lease"
"""A gateway says that it lives; workers stop generating for one that has gone silent."""
AUDITED = f"{PREFIX}.fleet.audited"
"""An identity replica says how far its audit of the ledger is, to all others."""

DEPLOYMENT = f"{PREFIX}.registry.deployment"
"""Registry subject of the record that tells whether an identity has this deployment's secret. Tenants and adapters
have more parts in their subjects, so none of them can be here."""

BASES = f"{PREFIX}.registry.bases"
"""Registry subject whose last message holds all bases. One for all of them: what supersedes what is decided by one
compare-and-set, and one read tells it."""

GATEWAY_QUEUE = "gateway"
IDENTITY_QUEUE = "identity"
RESIDENCY_QUEUE = "residency"

REGISTRY_STREAM = "OCTAVO_REGISTRY"
REGISTRY_SUBJECTS = (f"{PREFIX}.registry.>", f"{PREFIX}.keys.>")

CHECKPOINT_STREAM = "OCTAVO_CHECKPOINTS"
CHECKPOINTS = f"{PREFIX}.checkpoints"
"""Signed roots of the Merkle tree over the registry stream."""

KEY_STREAM = "OCTAVO_DATA_KEYS"
KEY_SUBJECTS = (f"{PREFIX}.datakeys.>",)
"""Wrapped data keys: what must be deletable, in a stream of its own."""
ERASED = f"{PREFIX}.datakeys.erased"
"""In the stream of keys: ids of adapters that were erased, so that workers that were away learn of it."""

CLAIM_STREAM = "OCTAVO_CLAIMS"
CLAIM_SUBJECTS = (f"{PREFIX}.claims.*",)
"""What identities are about to add for tenants with quotas, one message for each tenant."""

IDENTITY_STREAMS = {
    REGISTRY_STREAM: REGISTRY_SUBJECTS,
    CHECKPOINT_STREAM: (CHECKPOINTS,),
    KEY_STREAM: KEY_SUBJECTS,
    CLAIM_STREAM: CLAIM_SUBJECTS,
}
"""Stream → subjects. Only identity may write to these and read from them."""

USAGE_STREAM = "OCTAVO_USAGE"
USAGE_SUBJECTS = (f"{PREFIX}.usage.*",)
"""What requests used: gateways write to this one, and identity reads from it."""

DELETABLE_STREAMS = (KEY_STREAM,)
"""Those of which identity may delete single messages."""


_REGISTRY = f"{PREFIX}.registry."
_DOTS_OF_ADAPTERS = _REGISTRY.count(".") + 2


def copies(stream: str) -> str:
    """Subject on which any replica of ``stream`` shows messages; they may be old, so no decision is made from them."""
    return f"$JS.API.DIRECT.GET.{stream}"


def identity(verb: str) -> str:
    """Subject of one identity verb, served by the queue group ``IDENTITY_QUEUE``."""
    return f"{PREFIX}.identity.{verb}"


def usage(gateway_id: str) -> str:
    """Subject in the stream of usage that a gateway writes its records to."""
    return f"{PREFIX}.usage.{gateway_id}"


def residency(verb: str) -> str:
    """Subject of one command to the residency manager."""
    return f"{PREFIX}.residency.{verb}"


def worker(worker_id: str, verb: str) -> str:
    """Subject of one verb (generate, cancel, prefetch, evict, erase) of one worker."""
    return f"{PREFIX}.worker.{worker_id}.{verb}"


def tenant_head(shard: str, tenant_id: str) -> str:
    """Registry subject whose last message is the tenant's head."""
    return f"{PREFIX}.registry.{shard}.{tenant_id}"


def adapter_head(shard: str, tenant_id: str, adapter_id: str) -> str:
    """Registry subject whose last message is the adapter's head and whose messages are its ledger."""
    return f"{PREFIX}.registry.{shard}.{tenant_id}.{adapter_id}"


def adapter_of(subject: str) -> str | None:
    """Return the adapter's id in what ``adapter_head`` made, None for any other subject."""
    is_adapters = subject.startswith(_REGISTRY) and subject.count(".") == _DOTS_OF_ADAPTERS
    return subject.rpartition(".")[2] if is_adapters else None


def tenant_of(subject: str) -> str:
    """Return the tenant's id in what ``adapter_head`` made."""
    return subject.split(".")[-2]


def signers_head(principal_id: str) -> str:
    """Registry subject whose last message holds a principal's signing keys."""
    return f"{PREFIX}.keys.signers.{principal_id}"


def data_key(adapter_id: str) -> str:
    """Subject in the stream of keys whose last message is an adapter's wrapped data key, or says that it is gone."""
    return f"{PREFIX}.datakeys.adapters.{adapter_id}"


def upload_key(adapter_id: str, upload_id: str) -> str:
    """Subject in the stream of keys whose last message is the wrapped key that an upload is staged under."""
    return f"{PREFIX}.datakeys.uploads.{adapter_id}.{upload_id}"


def claims(tenant_id: str) -> str:
    """Subject whose last message holds what identities are about to add for a tenant."""
    return f"{PREFIX}.claims.{tenant_id}"


def key_head(key_id: str) -> str:
    """Registry subject whose last message is the API key's record."""
    return f"{PREFIX}.keys.{key_id}"
