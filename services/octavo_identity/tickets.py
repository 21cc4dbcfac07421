"""What a worker shows to get a data key: that identity named this very revision to somebody who may use it, lately."""

import hashlib
import hmac

import msgspec

from octavo_shared.errors import NotPermitted
from octavo_shared.messages.generation import AdapterHandle

TICKET_AGE_MS_MAX = 15 * 60_000
"""Much longer than a request's time budget: a handle travels with every attempt at it, and with prefetches."""
_TIME_BYTES = 8
_MAC_BYTES = 32


class Tickets:
    """Made and checked with a key that all replicas of identity derive. Not stored anywhere."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def with_ticket(self, handle: AdapterHandle, at_ms: int) -> AdapterHandle:
        """Return ``handle`` with a ticket that is good from now on, for a while."""
        until = (at_ms + TICKET_AGE_MS_MAX).to_bytes(_TIME_BYTES, "big")
        return msgspec.structs.replace(handle, ticket=until + self._mac(handle, until))

    def check(self, handle: AdapterHandle, at_ms: int) -> None:
        """Raise ``NotPermitted`` unless the ticket of ``handle`` was made for it and is still good."""
        until, mac = handle.ticket[:_TIME_BYTES], handle.ticket[_TIME_BYTES:]
        is_right = len(mac) == _MAC_BYTES and hmac.compare_digest(mac, self._mac(handle, until))
        if not is_right or int.from_bytes(until, "big") <= at_ms:
            raise NotPermitted("unwrap a data key without a ticket that is still good")

    def _mac(self, handle: AdapterHandle, until: bytes) -> bytes:
        # Every field counts, also those that will be added.
        content = msgspec.msgpack.encode(msgspec.structs.replace(handle, ticket=until))
        return hmac.new(self._key, content, hashlib.sha256).digest()
