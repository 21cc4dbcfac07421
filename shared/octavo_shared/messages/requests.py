"""What every request to identity begins with. Here so that each noun's messages can have a file of their own."""

import msgspec


class Credential(msgspec.Struct, frozen=True):
    """What the gateway passes on of an API key: its id and the SHA-256 of its secret, never the secret."""

    key_id: str
    secret_sha256: bytes


class Request(msgspec.Struct, frozen=True, kw_only=True):
    credential: Credential


class Write(Request, frozen=True, kw_only=True):
    """A repeated ``idempotency_key`` changes nothing and gets the first answer."""

    idempotency_key: str
