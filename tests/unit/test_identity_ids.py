import re
from pathlib import Path

import pytest

from octavo_identity.committing import UPLOAD_AGE_MS_MAX
from octavo_identity.ids import Ids, load_secret, write_private
from octavo_identity.keys import is_key_id
from octavo_identity.records import object_key, parse_object_key
from octavo_identity.registry import write_mark
from octavo_identity.sweeper import ABANDONED_AFTER_S
from octavo_shared.config import ConfigError

IDS = Ids(bytes(32))


def test_an_upload_id_belongs_to_one_principal_one_adapter_and_one_deployment_and_tells_its_age() -> None:
    upload = IDS.upload("alice@home", "home/diary", at_ms=1_000_000)
    assert IDS.upload_age_ms(upload, "alice@home", "home/diary", at_ms=1_000_500) == 500
    assert IDS.upload_age_ms(upload, "carol@home", "home/diary", at_ms=1_000_500) is None
    assert IDS.upload_age_ms(upload, "alice@home", "home/other", at_ms=1_000_500) is None
    assert Ids(bytes([1]) * 32).upload_age_ms(upload, "alice@home", "home/diary", at_ms=1_000_500) is None
    younger = f"{2_000_000:012x}" + upload[12:]
    for forged in (younger, upload[:-1], upload + "0", "", "../../packs/x", "é" * 60):
        assert IDS.upload_age_ms(forged, "alice@home", "home/diary", at_ms=1_000_500) is None
        assert IDS.upload_age_ms(forged, "alice@home", None, at_ms=1_000_500) is None
    assert upload != IDS.upload("alice@home", "home/diary", at_ms=1_000_000)


def test_an_upload_id_is_told_to_be_a_principals_without_naming_the_adapter() -> None:
    upload = IDS.upload("alice@home", "home/diary", at_ms=1_000_000)
    assert IDS.upload_age_ms(upload, "alice@home", None, at_ms=1_000_500) == 500
    assert IDS.upload_age_ms(upload, "carol@home", None, at_ms=1_000_500) is None
    # Every character counts, also those that only the adapter's name decides: they are part of an object key.
    for position in range(len(upload)):
        changed = upload[:position] + ("0" if upload[position] != "0" else "1") + upload[position + 1 :]
        assert IDS.upload_age_ms(changed, "alice@home", None, at_ms=1_000_500) is None
    assert re.fullmatch("[0-9a-f]{76}", upload)


@pytest.mark.parametrize(
    "text", ["", "\n", "ab" * 31, "ab" * 33, "AB" * 32, "gh" * 32, "ab" * 16 + "\0" * 32, "\xff" * 64], ids=repr
)
def test_a_damaged_secret_is_refused_and_kept(text: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="secret"):
        load_secret(tmp_path)
    assert (tmp_path / "secret").read_bytes() == text.encode("latin-1")


def test_a_pack_is_stored_where_its_key_can_be_read_back() -> None:
    adapter_id = IDS.adapter("home", "diary")
    upload = IDS.upload("alice@home", "home/diary", at_ms=1_000_000)
    one, two = (object_key(adapter_id, 12, upload, nonce) for nonce in ("0a", "0b"))
    assert one != two
    assert parse_object_key(one) == (adapter_id, 12)
    for other in (
        "",
        f"packs/{adapter_id}/0.aa",
        f"packs/{adapter_id}/1",
        f"packs/{adapter_id}/1.aa/b",
        "packs/x/1.aa",
    ):
        assert parse_object_key(other) is None


def test_an_upload_can_no_longer_be_committed_when_the_sweeper_may_take_it() -> None:
    commit_takes_ms_max = 2 * 110_000
    assert UPLOAD_AGE_MS_MAX + commit_takes_ms_max < ABANDONED_AFTER_S * 1000


def test_derived_ids_differ_by_tenant_name_and_incarnation_and_never_hold_a_name() -> None:
    ids = {
        IDS.adapter("home", "diary"),
        IDS.adapter("away", "diary"),
        IDS.adapter("home", "diar"),
        IDS.adapter("home", "diary", incarnation=1),
        IDS.adapter("homed", "iary"),
    }
    assert len(ids) == 5
    assert {len(one) for one in ids} == {32}
    assert len(IDS.tenant("home")) == 24


def test_a_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    secret = load_secret(tmp_path)
    assert load_secret(tmp_path) == secret
    assert len(secret) == 32
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    write_private(tmp_path / "secret", "of a slower replica")
    assert load_secret(tmp_path) == secret
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize("text", ["", "f" * 17, "F" * 16, "*" * 16, "f" * 15 + ".", "f" * 15 + "\n", "é" * 16])
def test_what_is_no_key_id_never_reaches_a_subject(text: str) -> None:
    assert not is_key_id(text)


def test_a_head_remembers_writes_at_a_fixed_length_and_by_actor() -> None:
    assert len(write_mark("alice@home", "k" * 10_000)) == 32
    assert write_mark("alice@home", "k") != write_mark("carol@home", "k")
