"""Verbs of those who hold packs: unwrap, erasures. They are asked by gateways and workers, without a user's key."""

from octavo_identity.data_keys import DataKeys
from octavo_identity.tickets import Tickets
from octavo_shared.clock import wall_ms
from octavo_shared.errors import InvalidRequest
from octavo_shared.key_transport import KeyNotReadable, answer_to
from octavo_shared.messages import privacy as messages

_SEQUENCE_MAX = 2**53


class Unwrapping:
    """One method per verb, of the same name. All only read."""

    def __init__(self, keys: DataKeys, tickets: Tickets) -> None:
        self._keys = keys
        self._tickets = tickets

    async def unwrap(self, request: messages.Unwrap) -> messages.DataKey:
        """Return the data key of an adapter to whoever shows identity's own ticket for it.

        Raises ``NotPermitted`` without a good one and ``AdapterErased`` when the key is gone, which the leader says.
        """
        self._tickets.check(request.adapter, wall_ms())
        return messages.DataKey(for_asker(request.public_key, await self._keys.read(request.adapter.adapter_id)))

    async def erasures(self, request: messages.ErasuresSince) -> messages.Erasures:
        """Return which adapters were erased, in the order in which they were."""
        if request.after is not None and not 0 <= request.after <= _SEQUENCE_MAX:
            raise InvalidRequest("after", f"must be 0 to {_SEQUENCE_MAX}")
        return await self._keys.erasures(request.after)


def for_asker(public_key: bytes, data_key: bytes) -> bytes:
    """Return ``data_key`` sealed for whoever asked with ``public_key``; raises ``InvalidRequest`` when that is none."""
    try:
        return answer_to(public_key, data_key)
    except KeyNotReadable:
        raise InvalidRequest("public_key", "must be an X25519 public key") from None
