"""The gateway's HTTP client: what the command line, the demo and the system tests speak through."""

import time
from collections.abc import Iterator

from octavo_cli.adapter_client import AdapterClient
from octavo_cli.answers import Answer, ClientError, Models, as_client_errors, check, read_chunk, read_head
from octavo_cli.connection import adapter_path, revision_query
from octavo_cli.key_client import KeyClient
from octavo_cli.pack_client import PackClient
from octavo_shared.messages.auditing import AuditReport
from octavo_shared.messages.fleet import View
from octavo_shared.messages.ledger import AuditPage, RevisionProof
from octavo_shared.references import parse_reference


class Client(KeyClient, AdapterClient, PackClient):
    """All of that over one connection, and what proves it, the fleet, and answers from a model."""

    def ask(
        self, model: str, prompt: str, answer: Answer, *, max_tokens: int, temperature: float, seed: int | None = None
    ) -> Iterator[str]:
        """Yield the pieces of the answer to one user message and fill ``answer`` on the way."""
        body: dict[str, object] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body |= {} if seed is None else {"seed": seed}
        began = time.monotonic()
        with as_client_errors(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            check(response)
            read_head(response.headers, answer)
            has_text = is_done = False
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    is_done = True
                    break
                for text in read_chunk(line.removeprefix("data: "), answer):
                    if not has_text:
                        answer.ttft_ms, has_text = (time.monotonic() - began) * 1000, True
                    yield text
            if not is_done:
                raise ClientError("connection_lost", "the gateway closed the stream before its end", 0)
            answer.total_ms = (time.monotonic() - began) * 1000

    def models(self) -> list[str]:
        """Return the names that may be asked: the bases and this key's adapters."""
        return [model.id for model in self._call("GET", "/v1/models", Models).data]

    def fleet(self) -> View:
        """Return what is where (admin)."""
        return self._call("GET", "/v1/fleet", View)

    def prove(self, reference: str, old_size: int = 0) -> RevisionProof:
        """Return what proves a revision, and that the ledger goes on from its first ``old_size`` events."""
        parsed = parse_reference(reference, "adapter")
        query = {"old_size": old_size} | revision_query(parsed)
        return self._call("GET", f"{adapter_path(parsed.name)}/proof", RevisionProof, query=query)

    def audit(self, first: int, old_size: int = 0) -> AuditPage:
        """Return a page of all events, from sequence ``first`` on (admin, auditor)."""
        return self._call("GET", "/v1/ledger/events", AuditPage, query={"first": first, "old_size": old_size})

    def audit_state(self) -> AuditReport:
        """Return what the background audits of the ledger have found (admin, auditor)."""
        return self._call("GET", "/v1/ledger/audit", AuditReport)
