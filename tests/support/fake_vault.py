"""A small HTTP server that answers as Vault's transit engine does: real AES-GCM, versions, policies and errors."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class _Refused(Exception):
    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


@dataclass
class FakeVault:
    """``keys`` are the versions of each key, the first at 0; ``status`` answers everything with an error of it."""

    url: str = ""
    token: str = "a-token"
    keys: dict[str, list[bytes]] = field(default_factory=dict)
    status: int = 0
    num_calls: int = 0

    def answer(self, path: str, token: str, body: dict[str, Any]) -> dict[str, Any] | None:
        self.num_calls += 1
        if self.status:
            raise _Refused(self.status, "as the test wants it")
        if token != self.token:
            raise _Refused(403, "permission denied")
        mount, verb, name = path.removeprefix("/v1/").split("/")
        assert mount == "secret-keys"
        if verb == "keys":
            assert body == {"type": "aes256-gcm96"}
            self.keys.setdefault(name, [os.urandom(32)])
            return None
        if name not in self.keys:
            raise _Refused(400, "encryption key not found")
        associated = base64.b64decode(body["associated_data"])
        if verb == "encrypt":
            version, nonce = len(self.keys[name]), os.urandom(12)
            plain = base64.b64decode(body["plaintext"])
            sealed = nonce + AESGCM(self.keys[name][-1]).encrypt(nonce, plain, associated)
            return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}"}
        assert verb == "decrypt"
        try:
            _, version, text = body["ciphertext"].split(":")
            sealed = base64.b64decode(text)
            plain = AESGCM(self.keys[name][int(version[1:]) - 1]).decrypt(sealed[:12], sealed[12:], associated)
        except (InvalidTag, ValueError):
            raise _Refused(400, "invalid ciphertext") from None
        return {"plaintext": base64.b64encode(plain).decode()}


@contextmanager
def fake_vault() -> Iterator[FakeVault]:
    """Run one on a free port of loopback."""
    vault = FakeVault()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                data = vault.answer(self.path, self.headers.get("X-Vault-Token", ""), body)
                status, answer = (200, {"data": data}) if data is not None else (204, None)
            except _Refused as refused:
                status, answer = refused.status, {"errors": [str(refused)]}
            content = json.dumps(answer).encode() if answer is not None else b""
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    vault.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="fake vault")
    thread.start()
    try:
        yield vault
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
