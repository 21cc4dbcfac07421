"""Requests that nobody polite sends, each with the word that the refusal must hold: mostly the field that is wrong."""

import json
from dataclasses import dataclass, field
from typing import Any

HUGE = 10**30
LONG = "x" * 100_000
MESSAGES = [{"role": "user", "content": "hi"}]
DIGEST = f"sha256:{1:064x}"
DIARY = "/v1/adapters/home/diary"
UPLOAD_ID = "{upload_id}"
"""Stands for an upload that was begun for home/diary."""


@dataclass(frozen=True)
class Rude:
    """``body`` is sent as JSON, or as it is when it is bytes. ``names``: what the refusal's sentence must hold."""

    name: str
    route: str
    names: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 400

    @property
    def content(self) -> bytes | None:
        if self.body is None or isinstance(self.body, bytes):
            return self.body
        return json.dumps(self.body).encode()


def _chat(name: str, names: str, **fields: Any) -> Rude:
    body = {"model": "home/diary", "messages": MESSAGES} | fields
    return Rude(f"chat: {name}", "POST /v1/chat/completions", names, body)


def _evaluation(**fields: Any) -> dict[str, Any]:
    score = {"metric": "passed", "value": 1.0, "num_items": 1} | fields.pop("score", {})
    return {"revision": 1, "suite": "manners", "suite_digest": DIGEST, "base": DIGEST, "scores": [score]} | fields


def _gate(**fields: Any) -> dict[str, Any]:
    return {"rules": [{"metric": "passed", "suite": "manners", "suite_digest": DIGEST, "threshold": 0.5} | fields]}


GENERATION = [
    _chat("a number for a model", "model", model=7),
    _chat("a path for a model", "model", model="../../etc/passwd"),
    _chat("a null byte in a model", "model", model="home/diary\0"),
    _chat("a line feed behind a model", "model", model="home/diary\n"),
    _chat("a Cyrillic letter in a model", "model", model="home/di\u0430ry"),
    _chat("a revision in other digits", "model", model="home/diary@\u0661"),
    _chat("a revision of ten digits", "model", model="home/diary@9999999999"),
    _chat("a model of 100,000 letters", "model", model=LONG),
    _chat("half of a surrogate pair", "body", messages=[{"role": "user", "content": "\ud800"}]),
    _chat("messages that are none", "messages", messages="hi"),
    _chat("a message that is a list", "messages", messages=[[]]),
    _chat("no messages", "messages", messages=[]),
    _chat("10,001 messages", "messages", messages=MESSAGES * 10_001),
    _chat("a negative number of tokens", "max_tokens", max_tokens=-1),
    _chat("a number of tokens beyond 64 bits", "max_tokens", max_tokens=HUGE),
    _chat("a temperature in words", "temperature", temperature="hot"),
    _chat("a seed beyond 64 bits", "seed", seed=HUGE),
    _chat("a million choices", "n", n=1_000_000),
    _chat("a top_k beyond 64 bits", "top_k", top_k=HUGE),
    _chat("a bias for a word", "logit_bias", logit_bias={"word": 1}),
    _chat("a bias beyond all tokens", "logit_bias", logit_bias={str(HUGE): 1}),
    _chat("stop strings without end", "stop", stop=["x"] * 1_000),
    _chat("a field that is not known", "shell", shell="rm -rf /"),
    Rude("chat: a number that is infinite", "POST /v1/chat/completions", "temperature",
         b'{"model": "home/diary", "messages": [], "temperature": 1e999}'),
    Rude("chat: NaN", "POST /v1/chat/completions", "body", b'{"model": "home/diary", "temperature": NaN}'),
    Rude("chat: half of its JSON", "POST /v1/chat/completions", "body", b'{"model": "home/di'),
    Rude("chat: bytes that are no text", "POST /v1/chat/completions", "body", b'{"model": "\xff\xfe"}'),
    Rude("chat: 100,000 brackets", "POST /v1/chat/completions", "body", b"[" * 100_000),
    Rude("chat: a list", "POST /v1/chat/completions", "body", []),
    Rude("chat: nothing", "POST /v1/chat/completions", "model", b""),
    Rude("chat: 2 MiB", "POST /v1/chat/completions", "1048576", b'"' + b"x" * 2**21 + b'"', status=413),
]  # fmt: skip
"""Of these, the chat's are also sent over NATS."""

REGISTRY = [
    Rude("a tenant in capitals", "POST /v1/adapters/HOME/diary/rollback", "adapter", {}),
    Rude("a path in a path", "GET /v1/adapters/home/..%2F..%2Fkeys/history", "", status=404),
    Rude("a null byte in a path", "GET /v1/adapters/home/di%00ary/history", "adapter"),
    Rude("bytes that are no text in a path", "GET /v1/adapters/home/%ff%fe/history", "adapter"),
    Rude("a lookalike in a path", "GET /v1/adapters/home/di%D0%B0ry/history", "adapter"),
    Rude("a wildcard for an adapter", "GET /v1/adapters/home/%2A/history", "adapter"),
    Rude("a name of 100 letters", f"GET /v1/adapters/home/{'x' * 100}/history", "adapter"),
    Rude("a limit below nothing", f"GET {DIARY}/history?limit=-1", "limit"),
    Rude("a limit beyond 64 bits", f"GET {DIARY}/history?limit={HUGE}", "limit"),
    Rude("a limit in words", f"GET {DIARY}/history?limit=many", "limit"),
    Rude("a limit of 5,000 digits", f"GET {DIARY}/history?limit={'9' * 5_000}", "limit"),
    Rude("a size of the ledger beyond 64 bits", f"GET {DIARY}/proof?old_size={HUGE}", "old_size"),
    Rude("a size of the ledger below nothing", f"GET {DIARY}/proof?old_size=-1", "old_size"),
    Rude("a revision that is a path", f"GET {DIARY}/proof?revision=../1", "revision"),
    Rude("a revision in other digits", f"GET {DIARY}/proof?revision=%D9%A1", "revision"),
    Rude("a revision 0", f"GET {DIARY}/proof?revision=0", "revision"),
    Rude("days beyond 64 bits", f"GET /v1/usage?days={HUGE}", "days"),
    Rude("no days", f"GET {DIARY}/usage?days=0", "days"),
    Rude("a page of keys beyond 64 bits", f"GET /v1/keys?limit={HUGE}", "limit"),
    Rude("a page of keys behind no key", "GET /v1/keys?after=%2A", "after"),
    Rude("keys of a wildcard", "GET /v1/keys?principal=%3E", "principal"),
    Rude("a forged page of a list", "GET /v1/adapters?after=home%2F%00", "after"),
    Rude("a page of a list behind 100,000 letters", f"GET /v1/adapters?after={'x' * 20_000}", "after"),
    Rude("a state that is none", "GET /v1/adapters?state=open", "state"),
    Rude("a tag with a bell", "GET /v1/adapters?tag=%07", "tag"),
    Rude("a prefix in other letters", "GET /v1/adapters?prefix=%D0%B0", "prefix"),
    Rude("an owner with a null byte", "GET /v1/adapters?owner=a%00b", "owner"),
    Rude("a tenant with a line feed", "GET /v1/adapters?tenant=home%0A", "tenant"),
    Rude("a key to end that is a wildcard", "DELETE /v1/keys/%2A", "key_id"),
    Rude("a key to rotate that is a subject", "POST /v1/keys/signers.x/rotate", "key_id", {}),
    Rude("an overlap below nothing", "POST /v1/keys/0123456789abcdef/rotate", "overlap_s", {"overlap_s": -1}),
    Rude("a lifetime beyond 64 bits", "POST /v1/tenants/home/keys", "lifetime_s", {"user": "bob", "lifetime_s": HUGE}),
    Rude("a role that is none", "POST /v1/tenants/home/keys", "role", {"user": "alice", "role": "root"}),
    Rude("a user that is a path", "POST /v1/tenants/home/keys", "user", {"user": "../alice"}),
    Rude("a label of 100,000 letters", "POST /v1/tenants/home/keys", "label", {"user": "alice", "label": LONG}),
    Rude("a key for adapters by a pattern", "POST /v1/tenants/home/keys", "adapters",
         {"user": "alice", "adapters": "home/(.+)+x"}),
    Rude("a signing key that is none", "POST /v1/signers", "public_key", {"public_key": "-----BEGIN"}),
    Rude("a signing key with half of a surrogate pair", "POST /v1/signers", "", b'{"public_key": "\\ud800"}'),
    Rude("a signing key to end that is a wildcard", "DELETE /v1/signers/%2A", "key_id"),
    Rude("a share of 1,000 percent", f"POST {DIARY}/promote", "share",
         {"revision": 1, "alias": "canary", "share": 1_000}),
    Rude("a revision below nothing", f"POST {DIARY}/retire", "revision", {"revision": -1}),
    Rude("a revision beyond 64 bits", f"POST {DIARY}/retire", "revision", {"revision": HUGE}),
    Rude("a revision that is true", f"POST {DIARY}/retire", "revision", {"revision": True}),
    Rude("a revision that is half", f"POST {DIARY}/retire", "revision", {"revision": 1.5}),
    Rude("an alias with a slash", f"POST {DIARY}/promote", "alias", {"revision": 1, "alias": "a/b"}),
    Rude("an alias that is not text", f"POST {DIARY}/promote", "alias", {"revision": 1, "alias": None}),
    Rude("a field that is not known", f"POST {DIARY}/promote", "force", {"revision": 1, "force": True}),
    Rude("a tag of control characters", f"POST {DIARY}/tags", "tag", {"add": ["\u0007"]}),
    Rude("10,000 tags", f"POST {DIARY}/tags", "tag", {"add": [f"t{one}" for one in range(10_000)]}),
    Rude("a grant to a wildcard", f"POST {DIARY}/grants", "principal", {"principal": "*@*"}),
    Rude("a grant with a line feed", f"POST {DIARY}/grants", "principal", {"principal": "bob@home\n"}),
    Rude("a role on an adapter that is none", f"POST {DIARY}/grants", "role",
         {"principal": "bob@home", "role": "owner"}),
    Rude("an owner that is a tenant", f"POST {DIARY}/transfer", "owner", {"owner": "*@home"}),
    Rude("a source that is a path", "POST /v1/adapters/home/new/branch", "source", {"source": "home/../diary"}),
    Rude("a score beyond one", f"POST {DIARY}/evaluations", "scores", _evaluation(score={"value": 2.0})),
    Rude("items beyond 64 bits", f"POST {DIARY}/evaluations", "num_items", _evaluation(score={"num_items": HUGE})),
    Rude("a metric that is none", f"POST {DIARY}/evaluations", "metric", _evaluation(score={"metric": "love"})),
    Rude("a suite that is a path", f"POST {DIARY}/evaluations", "suite", _evaluation(suite="../x")),
    Rude("a digest that is none", f"POST {DIARY}/evaluations", "suite_digest", _evaluation(suite_digest="sha256:x")),
    Rude("a statement that is no envelope", f"POST {DIARY}/evaluations", "statement", _evaluation(statement={})),
    Rude("a statement that is no base64", f"POST {DIARY}/evaluations", "envelope", _evaluation(
        statement={"payload": "%%%", "payloadType": "application/vnd.in-toto+json", "signatures": []})),
    Rude("a threshold below nothing", f"PUT {DIARY}/gate", "threshold", _gate(threshold=-1.0)),
    Rude("a gate without rules", f"PUT {DIARY}/gate", "rules", {"rules": []}),
    Rude("1,000 rules", f"PUT {DIARY}/gate", "rules", {"rules": _gate()["rules"] * 1_000}),
    Rude("an upload to a path", "POST /v1/uploads", "adapter", {"adapter": "home/../diary"}),
    Rude("an upload that nobody began", f"POST {DIARY}/revisions", "upload_id", {"upload_id": "u" * 76}),
    Rude("an upload id that is a path", f"POST {DIARY}/revisions", "upload_id", {"upload_id": "../../packs"}),
    Rude("a file beside an upload's two", f"PUT /v1/uploads/{UPLOAD_ID}/evil.py", "file", b"x"),
    Rude("an upload's id with a slash", "PUT /v1/uploads/..%2Fpacks/adapter_config.json", "", b"x", status=404),
    Rude("a note of 100,000 letters", f"POST {DIARY}/revisions", "note", {"upload_id": UPLOAD_ID, "note": LONG}),
    Rude("a dtype that is none", f"POST {DIARY}/revisions", "dtype", {"upload_id": UPLOAD_ID, "dtype": "int1"}),
    Rude("a base that nobody has", f"POST {DIARY}/revisions", "base", {"upload_id": UPLOAD_ID, "base": "gpt-9"}),
    Rude("an import of nothing", "POST /v1/import", "items", {"items": []}),
    Rude("an import of 1,000 at once", "POST /v1/import", "items",
         {"items": [{"adapter": f"home/n{one}", "key": "k"} for one in range(1_000)]}),
    Rude("an import with an unprintable key", "POST /v1/import", "key",
         {"items": [{"adapter": "home/x", "key": "\0"}]}),
    Rude("an idempotency key of 1,000 letters", f"POST {DIARY}/rollback", "Idempotency-Key", {},
         {"Idempotency-Key": "k" * 1_000}),
    Rude("an idempotency key of a tab", f"POST {DIARY}/rollback", "Idempotency-Key", {}, {"Idempotency-Key": "a\tb"}),
    Rude("a key that is a wildcard", "GET /v1/key", "key", headers={"Authorization": "Bearer oct_*_" + "0" * 64},
         status=401),
    Rude("a key of 100,000 letters", "GET /v1/key", "key", headers={"Authorization": f"Bearer oct_{'0' * 20_000}_00"},
         status=401),
    Rude("a method that is none", "BREW /v1/key", "method", status=405),
    Rude("a route that is none", "GET /v1/../etc/passwd", "route", status=404),
]  # fmt: skip

ADMIN = [
    Rude("a quota below nothing", "PATCH /v1/tenants/home/quotas", "adapters", {"adapters": -1}),
    Rude("a quota beyond 64 bits", "PATCH /v1/tenants/home/quotas", "adapters", {"adapters": HUGE}),
    Rude("a quota that is none", "PATCH /v1/tenants/home/quotas", "wishes", {"wishes": 3}),
    Rude("a tenant that is a subject", "POST /v1/tenants", "tenant", {"tenant": "a.>"}),
    Rude("an event beyond 64 bits", f"GET /v1/ledger/events?first={HUGE}", "first"),
    Rude("an event 0", "GET /v1/ledger/events?first=0", "first"),
    Rude("a page of 1,000 events", "GET /v1/ledger/events?limit=1000", "limit"),
    Rude("a base that is a path", "POST /v1/bases/..%5C/retire", "base", status=404),
    Rude("a base that supersedes by nothing", "POST /v1/bases/tiny/supersede", "by", {}),
]
"""What only an admin is told what is wrong with."""
