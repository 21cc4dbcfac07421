"""The gateway's settings, read once at start from ``OCTAVO_*``."""

from typing import Annotated

from msgspec import Meta

from octavo_shared.config import StoreSettings
from octavo_shared.messages.pushing import UPLOAD_BYTES_MAX


class GatewaySettings(StoreSettings, frozen=True, kw_only=True):
    """``requests_per_s`` and ``requests_burst`` hold per API key; ``num_in_flight_max`` for the whole process."""

    http_port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    num_in_flight_max: Annotated[int, Meta(ge=1, le=65_536)] = 256
    requests_per_s: Annotated[float, Meta(gt=0.0)] = 50.0
    requests_burst: Annotated[int, Meta(ge=1)] = 100
    upload_bytes_max: Annotated[int, Meta(ge=1)] = UPLOAD_BYTES_MAX
