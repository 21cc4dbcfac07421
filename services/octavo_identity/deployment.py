"""One stream, one secret: ids and heads made with another secret would fork everything that the stream holds."""

import hmac
from pathlib import Path

from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids
from octavo_identity.records import DeploymentHead, RegistryEvent, TenantHead
from octavo_shared.clock import wall_ms
from octavo_shared.config import ConfigError
from octavo_shared.errors import RevisionConflict
from octavo_shared.subjects import DEPLOYMENT, REGISTRY_STREAM, tenant_head


async def check_secret(heads: HeadStore, ids: Ids, folder: Path) -> None:
    """Make sure that the stream was begun with this secret; an empty one is begun with it, by its first record.

    A stream from before there was such a record gets it if a tenant in it says the same. Raises ``ConfigError`` when
    the secret was another one, and ``DependencyUnavailable``.
    """
    mark = ids.deployment()
    wrong = ConfigError(f"the secret in {folder} is not the one that {REGISTRY_STREAM} was begun with; restore it")
    found = await heads.read(DEPLOYMENT)
    if found is None:
        tenant = await heads.read(tenant_head("*", "*"))
        head = tenant[0].head if tenant else None
        if isinstance(head, TenantHead) and ids.tenant(head.tenant) != head.tenant_id:
            raise wrong
        event = RegistryEvent("deployment_begun", "identity", wall_ms(), 0, DeploymentHead(mark))
        try:
            await heads.append(DEPLOYMENT, event)
            return
        except RevisionConflict:
            # Another replica was a moment faster, and it may have another secret.
            found = await heads.read(DEPLOYMENT)
    begun = found[0].head if found else None
    if not isinstance(begun, DeploymentHead) or not hmac.compare_digest(begun.secret_mark, mark):
        raise wrong
