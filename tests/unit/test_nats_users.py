"""Seeds, credentials, and the configuration that is generated from the permissions."""

import stat
from pathlib import Path

import pytest

from octavo_cli.nats_users import ROLES, Seeds, authorization, deployed_workers, nkey_variables
from octavo_shared import subjects
from octavo_shared.config import ConfigError
from octavo_shared.credentials import new_seed, read_credentials
from octavo_shared.permissions import PERMISSIONS, BusRole, worker_permissions

ROOT = Path(__file__).parents[2]


def test_what_is_deployed_is_what_octavo_nats_config_prints() -> None:
    assert (ROOT / "deploy" / "nats" / "authorization.conf").read_text() == authorization(
        nkey_variables(deployed_workers(1))
    )


def test_no_role_has_an_empty_list_which_a_server_takes_for_everything() -> None:
    assert PERMISSIONS.keys() == set(BusRole) - {BusRole.WORKER}
    everyone = [*PERMISSIONS.values(), worker_permissions("w1")]
    assert all(permissions.publish and permissions.subscribe for permissions in everyone)


def test_what_one_worker_hears_no_other_does_but_for_what_gateways_tell_all() -> None:
    one, other = (set(worker_permissions(name).subscribe) for name in ("w1", "w2"))
    assert one & other == {subjects.LEASE}
    assert not any("w1" in subject for subject in other)


def test_seeds_are_their_owners_alone_and_stay_the_same(tmp_path: Path) -> None:
    seeds = Seeds(tmp_path / "seeds")
    workers = deployed_workers(2)
    nkeys = seeds.nkeys(workers)
    assert set(nkeys) == {*ROLES, "octavo-worker-0", "octavo-worker-1"}
    assert len(set(nkeys.values())) == len(nkeys)
    assert all(nkey.startswith("U") and len(nkey) == 56 for nkey in nkeys.values())
    assert {stat.S_IMODE(seeds.path(user).stat().st_mode) for user in nkeys} == {0o600}
    assert Seeds(tmp_path / "seeds").nkeys(workers) == nkeys
    seeds.path("octavo-worker-1").unlink()
    again = seeds.nkeys(deployed_workers(3))
    assert {user for user in nkeys if again[user] != nkeys[user]} == {"octavo-worker-1"}
    assert set(again) - set(nkeys) == {"octavo-worker-2"}


def test_credentials_are_read_once_and_never_shown(tmp_path: Path) -> None:
    seed = new_seed()
    path = tmp_path / "seed"
    path.write_text(seed + "\n")
    credentials = read_credentials(BusRole.WORKER, str(path))
    assert credentials is not None
    assert credentials.seed == seed
    assert seed not in repr(credentials)
    assert read_credentials(BusRole.WORKER, "") is None


@pytest.mark.parametrize("text", ["", "no seed", "SU", "A" * 58, "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPP"])
def test_file_without_a_seed_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "seed"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        read_credentials(BusRole.WORKER, str(path))


def test_missing_seed_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_credentials(BusRole.WORKER, str(tmp_path / "nowhere"))
