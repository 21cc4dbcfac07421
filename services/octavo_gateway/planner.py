"""From what was asked to what every attempt is made from: resolved for who asks, tokenised, within the limits."""

from octavo_gateway.attempt import Plan
from octavo_gateway.base_names import BaseNames
from octavo_gateway.fleet import FleetView
from octavo_gateway.identity_client import IdentityClient
from octavo_gateway.openai import Ask
from octavo_gateway.openai_sampling import complete
from octavo_gateway.request_record import RequestRecord
from octavo_gateway.text import BaseText, TextStore
from octavo_shared.bases import base_label, labels_of
from octavo_shared.clock import wall_ms
from octavo_shared.errors import BaseNotServed, DailyQuotaExceeded, NoWorker
from octavo_shared.messages.requests import Credential
from octavo_shared.messages.resolving import Resolution
from octavo_shared.messages.usage import left_of_day_s
from octavo_shared.references import Fingerprint, TenantId, parse_reference


class Planner:
    """Checks requests before any worker hears of them."""

    def __init__(self, identity: IdentityClient, fleet: FleetView, texts: TextStore, names: BaseNames) -> None:
        self._identity = identity
        self._fleet = fleet
        self._texts = texts
        self._names = names

    async def plan(self, credential: Credential, ask: Ask, record: RequestRecord) -> tuple[Plan, BaseText]:
        """Return the plan of a request and the text side of its base; raises what refuses it."""
        base, resolution = await self._resolve(credential, ask.model)
        text = await self._texts.get(base)
        prompt = await text.tokenise(ask)
        record.num_prompt_tokens = len(prompt)
        context_tokens = self._fleet.context_tokens(base, text.manifest.context_tokens)
        max_tokens = text.max_tokens(ask, len(prompt), context_tokens)
        stop_token_ids = () if ask.is_eos_ignored else text.manifest.stop_token_ids
        sampling = complete(ask.sampling, max_tokens, stop_token_ids, text.num_vocabulary)
        if sampling.schema:
            await text.check_schema(sampling.schema)
        tenant_id = TenantId(resolution.tenant_id)
        return Plan(record.request_id, tenant_id, base, prompt, sampling, resolution.adapter), text

    async def _resolve(self, credential: Credential, model: str) -> tuple[Fingerprint, Resolution]:
        """Return the base that ``model`` is served on, and what identity says of it to who asks.

        The base's own name means no adapter. An adapter is never served on another base than its own.
        """
        bases = self._fleet.bases()
        # While a base is replaced, two may have one name; their labels tell them apart, and an adapter names its own.
        base_of = {name: base for base, name in bases.items()}
        base_of |= {base_label(name, base): base for base, name in bases.items()}
        is_base = model in base_of or (not base_of and "/" not in model)
        if not is_base:
            parse_reference(model)
        resolution = await self._identity.resolve(credential, None if is_base else model)
        if (quota := resolution.exhausted) is not None:
            raise DailyQuotaExceeded(
                quota.quota, limit=quota.limit, used=quota.used, retry_after_s=left_of_day_s(wall_ms())
            )
        if resolution.adapter is not None:
            base = resolution.adapter.base
            if base not in bases:
                raise BaseNotServed(await self._names.label(base), labels_of(bases)) if bases else NoWorker()
            return base, resolution
        if (named := base_of.get(model)) is None:
            raise NoWorker()
        return named, resolution
