"""``octavo signer``, signed pushes and ``octavo provenance`` against a real identity, behind a gateway."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from click.testing import Result
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope as TheirEnvelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey
from typer.testing import CliRunner

from octavo_cli.main import app
from octavo_cli.provenance_client import ProvenanceClient
from octavo_cli.signed_push import Pushed, Signing
from octavo_cli.signing_key import read_key
from octavo_identity.heads import HeadStore
from octavo_identity.ids import Ids, load_secret
from octavo_shared import dsse
from octavo_shared.config import StoreSettings
from octavo_shared.dsse import Envelope, Signer
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.provenance import Facts
from support.adapters import write_adapter
from support.command_world import pushing_world
from support.identity_rig import Client, credential, data_keys

FACTS = {
    "data": {"digest": "sha256:" + "4" * 64, "rows": 1200},
    "trainer": {"name": "peft", "version": "0.18.0"},
    "hyperparameters": {"learning_rate": 2e-4, "steps": 300},
    "code": {"uri": "git+https://example.com/train", "revision": "c0ffee"},
}


@dataclass
class Person:
    """Somebody at a terminal: a gateway, a key, files."""

    alice: Client
    key: str
    url: str
    folder: Path

    @property
    def signing_key(self) -> str:
        return str(self.folder / "keys" / "me.pem")

    async def octavo(self, *words: str) -> Result:
        environ = {
            "OCTAVO_GATEWAY_URL": self.url, "OCTAVO_KEY": self.key, "XDG_CONFIG_HOME": str(self.folder / "config"),
        }  # fmt: skip
        return await asyncio.to_thread(CliRunner().invoke, app, list(words), None, environ)

    async def said(self, *words: str) -> str:
        result = await self.octavo(*words)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    async def refused(self, *words: str) -> str:
        result = await self.octavo(*words)
        assert result.exit_code != 0, result.output
        return str(result.exception)

    async def register(self) -> str:
        """Make a key and register it; returns its id."""
        await self.said("signer", "new", self.signing_key)
        key_id = read_key(Path(self.signing_key)).key_id
        assert f"{key_id} signs for alice@home" in await self.said("signer", "add", self.signing_key)
        return key_id

    def facts(self, **changed: object) -> str:
        path = self.folder / "facts.json"
        path.write_text(json.dumps(FACTS | changed))
        return str(path)

    def adapter(self, seed: int) -> str:
        return str(write_adapter(self.folder / f"adapter{seed}", seed))


@pytest.fixture
async def person(store_settings: StoreSettings, tmp_path: Path) -> AsyncIterator[Person]:
    async with pushing_world(store_settings, tmp_path) as (alice, key, url):
        yield Person(alice, key, url, tmp_path)


async def signed_root_of(admin: Client, sequence: int) -> None:
    """Return when there is a signed root that covers the event; asking waits for one."""
    async with asyncio.timeout(10):
        await admin.ask("audit", first=sequence)


def json_in(said: str) -> str:
    """Return the line that is JSON: a gateway in this process writes its log to the same place."""
    return next(line for line in said.splitlines() if line.startswith("{"))


def their_key(path: Path) -> SSlibKey:
    return SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()), keyid=path.stem)


async def test_a_signed_push_is_shown_verified_by_us_and_by_another_tool_and_drawn(person: Person) -> None:
    key_id = await person.register()
    assert stat.S_IMODE(Path(person.signing_key).stat().st_mode) == 0o600
    signed = ("--signing-key", person.signing_key)
    assert "signed" in await person.said(
        "push", "home/diary", person.adapter(1), "--provenance", person.facts(), *signed
    )
    await person.said("push", "home/diary", person.adapter(2), "--dtype", "bf16", "--no-serve", *signed)
    await person.said("push", "home/diary", person.adapter(3))

    shown = await person.said("provenance", "home/diary@1")
    first = await person.alice.ask("provenance", reference="home/diary@1")
    for words in (
        f"home/diary@1  {first.digest}", "alice@home", "1200 rows", "peft 0.18.0", "learning_rate 0.0002",
        "rank 4", "alpha 8", "c0ffee", "parent      none", f"alice@home, key {key_id}: verifies", "the registry, key ",
    ):  # fmt: skip
        assert words in shown
    assert shown.count(": verifies") == 2
    small = await person.said("provenance", "home/diary@2")
    assert f"parent      {first.digest}" in small
    alone = await person.said("provenance", "home/diary@3")
    assert "not signed by alice@home: the registry alone says this" in alone

    proven = await person.said("verify", "home/diary@1")
    assert f"proven: its statement is signed by alice@home (key {key_id[:16]}, event " in proven
    assert " and the registry (key " in proven
    assert "the registry (key " in await person.said("verify", "home/diary@3")

    keys = person.folder / "public"
    told = await person.said("provenance", "home/diary@1", "--json", "--keys", str(keys))
    theirs = TheirEnvelope.from_dict(json.loads(json_in(told)))
    trusted = [their_key(path) for path in sorted(keys.iterdir())]
    assert len(theirs.verify(trusted, 2)) == 2
    theirs.payload = theirs.payload.replace(b"1200", b"1201")
    with pytest.raises(VerificationError):
        theirs.verify(trusted, 1)

    await person.said("branch", "home/diary", "home/copy", *signed)
    copied = await person.said("provenance", "home/copy")
    assert copied.count(": verifies") == 2
    assert "branch by   alice@home" in copied
    drawn = await person.said("provenance", "home/copy", "--graph", "mermaid")
    assert drawn.count(" -. branch .-> ") == 1

    drawn = await person.said("provenance", "home/diary", "--graph", "mermaid")
    assert "graph TD\n" in drawn
    assert drawn.count(" --> ") == 2
    assert "not signed by its pusher" in drawn
    assert (await person.said("provenance", "home/diary", "--graph", "dot")).count('"home/diary@1" -> ') == 2


async def test_a_key_that_may_not_sign_is_refused_by_name_and_nothing_is_pushed(person: Person) -> None:
    folder = person.adapter(1)
    push = ("push", "home/diary", folder)
    await person.said("signer", "new", person.signing_key)
    assert "exists" in await person.refused("signer", "new", person.signing_key)
    key_id = read_key(Path(person.signing_key)).key_id
    signed = ("--signing-key", person.signing_key)
    assert f"signing key {key_id} is not registered as yours" in await person.refused(*push, *signed)
    await person.said("signer", "add", person.signing_key)
    assert "name a key by --signing-key" in await person.refused(*push, "--provenance", person.facts())
    facts = person.facts(hyperparameters={"rank": 8})
    assert "hyperparameters.rank' is '8'" in await person.refused(*push, "--provenance", facts, *signed)
    facts = person.facts(data={"rows": 1})
    assert "'provenance.data'" in await person.refused(*push, "--provenance", facts, *signed)
    other_base = "sha256:" + "9" * 64
    assert other_base in await person.refused(*push, "--base", other_base, *signed)
    Path(person.signing_key).chmod(0o640)
    assert "chmod 600" in await person.refused(*push, *signed)
    Path(person.signing_key).chmod(0o600)
    assert "holds no Ed25519 private key" in await person.refused(*push, "--signing-key", facts)
    await person.said("signer", "revoke", key_id)
    (listed,) = [line for line in (await person.said("signer", "list")).splitlines() if key_id in line.split()[:1]]
    assert listed.count("+00:00") == 2
    assert f"signing key {key_id} of alice@home is revoked" in await person.refused(*push, *signed)
    assert "no such adapter" in await person.refused("history", "home/diary")


async def test_the_registry_refuses_what_a_client_that_does_not_look_signs(person: Person) -> None:
    await person.register()
    signer = read_key(Path(person.signing_key))
    await person.alice.ask("revoke_signer", key_id=signer.key_id)
    folder = Path(person.adapter(1))
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    pushed = Pushed("home/diary", config, weights, None, None, Signing(signer, Facts()))

    def push() -> None:
        with ProvenanceClient(person.url, person.key) as client:
            client.push_signed("home/diary", config, weights, pushed.sign)

    with pytest.raises(Exception, match=r"signatures\[0\].keyid' is of no key that is trusted here"):
        await asyncio.to_thread(push)


async def test_an_import_is_signed_and_what_cannot_be_signed_is_refused_alone(person: Person) -> None:
    many = person.folder / "many"
    for number in range(3):
        write_adapter(many / f"a{number}", number)
    person.facts()
    bad = many / "bad.json"
    bad.write_text('{"hyperparameters": {"alpha": 1}}')
    lines = [
        {"adapter": "home/a0", "path": "a0", "provenance": "../facts.json"},
        {"adapter": "home/a1", "path": "a1", "dtype": "bf16"},
        {"adapter": "home/a2", "path": "a2", "provenance": "bad.json"},
    ]
    (many / "MANIFEST.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "the manifest names provenance" in await person.refused("import", str(many))
    await person.said("signer", "new", person.signing_key)
    signed = ("import", str(many), "--signing-key", person.signing_key)
    assert "is not registered as yours" in await person.refused(*signed)
    await person.said("signer", "add", person.signing_key)
    result = await person.octavo(*signed)
    assert "2 imported, 0 were there already, 1 refused" in result.output
    assert "home/a2: the statement's 'predicate.hyperparameters.alpha' is '1'" in result.output
    for name, words in (("home/a0", "1200 rows"), ("home/a1", "rank 4")):
        shown = await person.said("provenance", name)
        assert shown.count(": verifies") == 2
        assert words in shown
    bad.unlink()
    (many / "MANIFEST.jsonl").write_text("\n".join(map(json.dumps, lines[:2])))
    assert "0 imported, 2 were there already, 0 refused" in await person.said(*signed)


async def test_an_audit_reports_a_statement_that_does_not_verify(person: Person) -> None:
    await person.register()
    await person.said("push", "home/diary", person.adapter(1), "--signing-key", person.signing_key)
    admin = (person.folder / "identity" / "admin_key").read_text()
    auditor = Person(person.alice, admin, person.url, person.folder)
    client = Client(person.alice.bus, person.alice.store, credential(admin))
    keys = data_keys(person.alice.bus, Ids(load_secret(person.folder / "identity")))
    heads = HeadStore(person.alice.bus, 1, keys)
    last = (await heads.state()).last_sequence
    await signed_root_of(client, last)
    assert "statements: 1 signed by their people and the registry, 0 by the registry alone, 0 bad" in (
        await auditor.said("verify", "--all")
    )
    # A registry that went wrong writes what nobody's key has signed; the ledger itself is sound.
    (stored,) = await heads.read_range(last, last)
    event = await heads.read_at(last)
    assert event is not None
    payload = dsse.decode(event.statement).data
    forged = dsse.encode(dsse.sign(dsse.STATEMENT_TYPE, payload, Signer(bytes([9]) * 32)))
    bad = msgspec.structs.replace(event, previous_sequence=last, statement=forged)
    sequence = await heads.append(stored.subject, bad)
    await signed_root_of(client, sequence)
    result = await auditor.octavo("verify", "--all")
    assert f"event {sequence}: the statement of home/diary@1 does not verify" in result.output
    assert "none is changed, missing or out of place" in result.output
    assert "1 revisions or evaluations have a statement that does not verify" in str(result.exception)


async def test_a_push_that_was_overtaken_is_signed_again_on_the_new_parent(person: Person) -> None:
    await person.register()
    folder = Path(person.adapter(1))
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    signing = Signing(read_key(Path(person.signing_key)), Facts())
    pushed = Pushed("home/diary", config, weights, None, None, signing)
    loop = asyncio.get_running_loop()
    parents: list[str | None] = []

    def sign(begun: UploadBegun) -> Envelope:
        parents.append(begun.parent)
        statement = pushed.sign(begun)
        if len(parents) == 1:
            asyncio.run_coroutine_threadsafe(person.alice.push("home/diary", 2), loop).result(30)
        return statement

    def push() -> int:
        with ProvenanceClient(person.url, person.key) as client:
            return client.push_signed("home/diary", config, weights, sign).latest.number

    assert await asyncio.to_thread(push) == 2
    between = await person.alice.ask("provenance", reference="home/diary@1")
    assert parents == [None, between.digest]
    assert (await person.alice.ask("provenance", reference="home/diary@2")).is_signed_by_pusher
