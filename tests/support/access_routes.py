"""Every HTTP route with a well-formed body, and how somebody of the table of verbs asks for it."""

import json
from typing import Any

import httpx

from support.access_world import Person, Who
from support.adapters import TINY_FINGERPRINT

ADAPTER = "/v1/adapters/{tenant}/{name}"
MESSAGES = [{"role": "user", "content": "hi"}]
DIGEST = f"sha256:{1:064x}"
BODIES: dict[str, Any] = {
    "POST /v1/chat/completions": {"model": "{adapter}", "messages": MESSAGES},
    "POST /v1/completions": {"model": "{adapter}", "prompt": "hi"},
    "GET /v1/models": None,
    "POST /v1/uploads": {"adapter": "{adapter}"},
    "PUT /v1/uploads/{upload_id}/{file_name}": {},
    "GET /v1/adapters": None,
    f"POST {ADAPTER}/revisions": {"upload_id": "u" * 16},
    "POST /v1/import": {"items": [{"adapter": "{adapter}", "key": "once"}]},
    f"DELETE {ADAPTER}": None,
    f"GET {ADAPTER}/pack": None,
    f"GET {ADAPTER}/history": None,
    f"GET {ADAPTER}/proof": None,
    f"GET {ADAPTER}/provenance": None,
    f"GET {ADAPTER}/lineage": None,
    f"POST {ADAPTER}/promote": {"revision": 1},
    f"POST {ADAPTER}/rollback": {"revision": 1},
    f"DELETE {ADAPTER}/aliases/{{alias}}": None,
    f"POST {ADAPTER}/retire": {"revision": 2},
    f"POST {ADAPTER}/branch": {"source": "{adapter}"},
    f"POST {ADAPTER}/tags": {"add": ["work"]},
    f"POST {ADAPTER}/grants": {"principal": "mallory@away", "role": "editor"},
    f"DELETE {ADAPTER}/grants/{{principal}}": None,
    f"POST {ADAPTER}/transfer": {"owner": "mallory@away"},
    f"POST {ADAPTER}/evict": {"tier": "cold"},
    f"POST {ADAPTER}/evaluations": {
        "revision": 1, "suite": "manners", "suite_digest": DIGEST, "base": TINY_FINGERPRINT,
        "scores": [{"metric": "passed", "value": 1.0, "num_items": 1}],
    },
    f"GET {ADAPTER}/evaluations": None,
    f"GET {ADAPTER}/gate": None,
    f"PUT {ADAPTER}/gate": {"rules": [
        {"metric": "passed", "suite": "manners", "suite_digest": DIGEST, "threshold": 0.5},
    ]},
    f"DELETE {ADAPTER}/gate": None,
    "GET /v1/tenants/{tenant}/gate": None,
    "PUT /v1/tenants/{tenant}/gate": {"rules": [
        {"metric": "passed", "suite": "manners", "suite_digest": DIGEST, "threshold": 0.5},
    ]},
    "DELETE /v1/tenants/{tenant}/gate": None,
    f"GET {ADAPTER}/usage": None,
    "GET /v1/tenants/{tenant}/usage": None,
    "GET /v1/usage": None,
    "PATCH /v1/tenants/{tenant}/quotas": {"adapters": 5},
    "GET /v1/ledger/events": None,
    "GET /v1/ledger/audit": None,
    "POST /v1/tenants": {"tenant": "another"},
    "POST /v1/tenants/{tenant}/keys": {"user": "mallory"},
    "GET /v1/keys": None,
    "POST /v1/keys/{key_id}/rotate": {},
    "DELETE /v1/keys/{key_id}": None,
    "GET /v1/key": None,
    "GET /v1/signers": None,
    "POST /v1/signers": {"public_key": "-----BEGIN PUBLIC KEY-----"},
    "DELETE /v1/signers/{key_id}": None,
    "GET /v1/bases": None,
    "GET /v1/bases/outdated": None,
    "POST /v1/bases/{base}/supersede": {"by": "another"},
    "POST /v1/bases/{base}/retire": None,
    "POST /v1/bases/{base}/restore": None,
    "GET /v1/fleet": None,
}  # fmt: skip
"""A well-formed body for each route. A new route needs a line here, or else a test of HTTP access fails."""

IMPORT = "POST /v1/import"
NAMES_AN_ADAPTER = [
    route
    for route, body in BODIES.items()
    # Each adapter of an import is answered for itself, as the table of verbs holds it.
    if route != IMPORT and ("{name}" in route or "{adapter}" in json.dumps(body))
]
BRANCH = f"POST {ADAPTER}/branch"


def filled(text: str, adapter: str) -> str:
    tenant, name = adapter.split("/")
    values = {"tenant": tenant, "name": name, "adapter": adapter, "alias": "stable", "principal": "guest@away",
              "key_id": "0" * 16, "upload_id": "u" * 76, "file_name": "adapter_config.json",
              "base": "tiny"}  # fmt: skip
    for field, value in values.items():
        text = text.replace(f"{{{field}}}", value)
    return text


async def asked(http: httpx.AsyncClient, route: str, adapter: str, key: str | None) -> tuple[int, bytes]:
    """Return status and body of what ``route`` answers to ``key``."""
    method, path = route.split()
    # A branch goes to a new adapter of one's own: it is the source that others may not have.
    path = filled(path, "away/mine" if route == BRANCH else adapter)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = BODIES[route]
    content = None if body is None else filled(json.dumps(body), adapter)
    response = await http.request(method, path, content=content, headers=headers)
    return response.status_code, response.content


def presented(person: Person) -> str | None:
    return None if person.who is Who.NO_KEY else person.key.text
