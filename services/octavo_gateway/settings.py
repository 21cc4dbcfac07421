"""The gateway's settings, read once at start from ``OCTAVO_*``."""

from octavo_shared.config import StoreSettings


class GatewaySettings(StoreSettings, frozen=True, kw_only=True):
    """``requests_per_s`` and ``requests_burst`` hold per API key; ``num_in_flight_max`` for the whole process."""

    http_port: int = 8080
    num_in_flight_max: int = 256
    requests_per_s: float = 50.0
    requests_burst: int = 100
    upload_bytes_max: int = 512 * 1024 * 1024
