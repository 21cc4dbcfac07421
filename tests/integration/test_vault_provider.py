"""Tenant keys in Vault: what identity asks of it, what its refusals mean, and a whole life of an adapter with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from octavo_identity.ids import Ids, load_secret
from octavo_identity.key_provider import FileKeyProvider, KeyProvider, KeyUnusable, VaultPlace
from octavo_identity.settings import IdentitySettings
from octavo_identity.vault_provider import VaultKeyProvider
from octavo_shared.config import ConfigError, StoreSettings, read_settings
from octavo_shared.errors import AdapterErased, AdapterNotFound, DependencyUnavailable
from octavo_shared.references import TenantId
from octavo_shared.seal import new_key
from support.erasure_world import erasure_world
from support.fake_vault import FakeVault, fake_vault

HOME = TenantId("5e" * 12)


@pytest.fixture
def vault() -> Iterator[FakeVault]:
    with fake_vault() as running:
        yield running


@pytest.fixture
def provider(vault: FakeVault, tmp_path: Path) -> Iterator[VaultKeyProvider]:
    (tmp_path / "token").write_text(f"{vault.token}\n")
    made = VaultKeyProvider(VaultPlace(vault.url, str(tmp_path / "token"), mount="secret-keys"))
    yield made
    made.close()


async def test_what_vault_wraps_it_unwraps_for_its_context_only(vault: FakeVault, provider: KeyProvider) -> None:
    key, key_id = new_key(), provider.key_id(HOME)
    wrapped = await provider.wrap(key_id, key, b"a place")
    assert key not in wrapped
    assert await provider.unwrap(key_id, wrapped, b"a place") == key
    other = provider.key_id(TenantId("ab" * 12))
    await provider.wrap(other, key, b"a place")
    changed = wrapped[:-4] + b"AAAA"
    for bad_id, bad in [
        (key_id, changed),
        (key_id, b""),
        (other, wrapped),
        (f"{key_id}0", wrapped),
        ("file/x", wrapped),
    ]:
        with pytest.raises(KeyUnusable):
            await provider.unwrap(bad_id, bad, b"a place")
    with pytest.raises(KeyUnusable):
        await provider.unwrap(key_id, wrapped, b"another place")
    assert await provider.unwrap(key_id, wrapped, b"a place") == key


async def test_keys_of_an_earlier_version_still_unwrap(vault: FakeVault, provider: KeyProvider) -> None:
    key, key_id = new_key(), provider.key_id(HOME)
    wrapped = await provider.wrap(key_id, key, b"")
    (name,) = vault.keys
    vault.keys[name].append(new_key())
    assert await provider.unwrap(key_id, wrapped, b"") == key
    assert await provider.unwrap(key_id, await provider.wrap(key_id, key, b""), b"") == key


async def test_a_vault_that_is_away_or_refuses_is_no_broken_key(
    vault: FakeVault, provider: VaultKeyProvider, tmp_path: Path
) -> None:
    key, key_id = new_key(), provider.key_id(HOME)
    wrapped = await provider.wrap(key_id, key, b"")
    for status in (403, 429, 500, 502, 503):
        vault.status = status
        with pytest.raises(DependencyUnavailable, match="key provider"):
            await provider.unwrap(key_id, wrapped, b"")
    vault.status = 0
    # A renewed token is taken from the file when the old one ends.
    vault.token = "another"
    with pytest.raises(DependencyUnavailable):
        await provider.unwrap(key_id, wrapped, b"")
    (tmp_path / "token").write_text("another")
    assert await provider.unwrap(key_id, wrapped, b"") == key
    gone = VaultKeyProvider(VaultPlace("http://127.0.0.1:1", str(tmp_path / "token")))
    with pytest.raises(DependencyUnavailable):
        await gone.wrap(key_id, key, b"")
    gone.close()
    absent = VaultKeyProvider(VaultPlace(vault.url, str(tmp_path / "no-token")))
    with pytest.raises(DependencyUnavailable):
        await absent.wrap(key_id, key, b"")
    absent.close()


async def test_many_at_once_are_answered(provider: KeyProvider) -> None:
    key_id, keys = provider.key_id(HOME), [new_key() for _ in range(40)]
    wrapped = await asyncio.gather(*(provider.wrap(key_id, key, b"x") for key in keys))
    assert await asyncio.gather(*(provider.unwrap(key_id, one, b"x") for one in wrapped)) == keys


async def test_an_adapter_lives_and_is_erased_with_keys_of_vaults(
    vault: FakeVault, store_settings: StoreSettings, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(vault.token)
    chosen = {"key_provider": "vault", "vault_url": vault.url, "vault_token_file": tmp_path / "token"}
    async with erasure_world(store_settings, tmp_path, **chosen, vault_mount="secret-keys") as world:
        await world.alice.push("home/diary")
        handle = await world.handle("home/diary")
        assert len(await world.alice.pack_of(handle)) == handle.pack_bytes
        ids = Ids(load_secret(tmp_path / "identity"))
        assert list(vault.keys) == [f"octavo-{ids.tenant('home')}"]
        # What was wrapped there opens nowhere else.
        num_calls = vault.num_calls
        await world.alice.unwrap(handle)
        assert vault.num_calls == num_calls + 1
        with pytest.raises(KeyUnusable):
            await FileKeyProvider(ids.tenant_key_root()).unwrap(f"vault/octavo-{handle.tenant_id}", b"x" * 60, b"")
        await world.alice.ask("erase", adapter="home/diary")
        with pytest.raises(AdapterNotFound):
            await world.alice.resolve("home/diary")
        with pytest.raises(AdapterErased):
            await world.alice.unwrap(handle)


@pytest.mark.parametrize(
    "given",
    [{"KEY_PROVIDER": "vault"}, {"KEY_PROVIDER": "kms"}, {"KEY_PROVIDER": "vault", "VAULT_URL": "http://v"},
     {"VAULT_URL": "http://v"}, {"KEY_PROVIDER": "vault", "VAULT_URL": "v", "VAULT_TOKEN_FILE": "t"},
     {"KEY_PROVIDER": "vault", "VAULT_URL": "http://v", "VAULT_TOKEN_FILE": "t", "TENANT_KEY_FILE": "f"}],
)  # fmt: skip
def test_settings_that_do_not_fit_together_refuse_to_start(given: dict[str, str]) -> None:
    given = {f"OCTAVO_{name}": value for name, value in given.items()}
    with pytest.raises(ConfigError, match=r"(?i)key_provider|vault_"):
        read_settings(IdentitySettings, given | {"OCTAVO_IDENTITY_DIR": "d"})
