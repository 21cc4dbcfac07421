"""``octavo import`` from a directory to the registry: real NATS and S3, identity, a gateway, the command line."""

import json
import shutil
from pathlib import Path

import pytest

from octavo_cli.answers import ClientError
from octavo_cli.import_source import chunks_of, sources_of
from octavo_shared.config import StoreSettings
from support.adapters import config_json, write_adapter
from support.command_world import octavo, pushing_world


async def test_a_directory_is_imported_and_what_stopped_goes_on(store_settings: StoreSettings, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for number in range(40):
        write_adapter(many / f"a{number:02}", number)
    (many / "a07" / "adapter_config.json").write_bytes(config_json(use_dora=True))
    (many / "a08" / "adapter_model.safetensors").unlink()
    write_adapter(many / "Not A Name")
    (many / "notes").mkdir()
    async with pushing_world(store_settings, tmp_path) as (alice, key, url):
        await alice.push("home/a03", 99)
        code, said = await octavo(url, key, tmp_path, "import", str(many), "--tenant", "home")
        assert code == 1
        assert "38 imported, 0 were there already, 3 refused" in said
        for words in ("home/a07: dora", "home/a08: ", "home/Not A Name: "):
            assert words in said
        found = {info.name: info for info in (await alice.ask("list")).adapters}
        assert len(found) == 38
        assert [found[f"home/a{number:02}"].num_revisions for number in (2, 3, 4)] == [1, 2, 1]
        write_adapter(many / "a07", 7)
        shutil.rmtree(many / "a08")
        shutil.rmtree(many / "Not A Name")
        before = await alice.ask("history", adapter="home/a00")
        code, said = await octavo(url, key, tmp_path, "import", str(many), "--tenant", "home")
        assert (code, said) == (0, "1 imported, 38 were there already, 0 refused\n")
        assert await alice.ask("history", adapter="home/a00") == before


async def test_a_manifest_says_what_adapters_are_called_and_how_they_are_tagged(
    store_settings: StoreSettings, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    lines: list[dict[str, object]] = []
    for number in range(4):
        write_adapter(many / f"any {number}", number)
        lines.append({"adapter": f"home/m{number}", "path": f"any {number}", "note": f"n{number}"})
    lines[1] |= {"tags": ["work", "old"]}
    lines[2] |= {"alias": None}
    lines[3] |= {"adapter": "away/m3"}
    (many / "MANIFEST.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    async with pushing_world(store_settings, tmp_path) as (alice, key, url):
        code, said = await octavo(url, key, tmp_path, "import", str(many / "MANIFEST.jsonl"))
        assert code == 1
        assert "away/m3: no such adapter or revision, or this key may not use it (adapter_not_found)" in said
        assert "3 imported, 0 were there already, 1 refused" in said
        found = {info.name: info for info in (await alice.ask("list")).adapters}
        assert [(info.latest.note, info.tags) for info in found.values()] == [
            ("n0", ()), ("n1", ("old", "work")), ("n2", ()),
        ]  # fmt: skip
        assert (found["home/m1"].aliases, found["home/m2"].aliases) == ({"serving": 1}, {})
    code, said = await octavo(url, key, tmp_path, "import", str(many))
    assert code == 1
    assert "no gateway answers" in said
    assert "0 of 4 are done; run the same command again to go on" in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nonsense", "line 1 of"),
        ('{"adapter": "home/a"}', "missing required field `path`"),
        ('{"adapter": "home/a", "path": "a", "tag": "x"}', "unknown field `tag`"),
        ('{"adapter": "home/a@1", "path": "a"}', "must name an adapter"),
        ('{"adapter": "home/a", "path": "a"}\n{"adapter": "home/a", "path": "b"}', "'home/a' is named twice"),
        ("", "holds no directory"),
    ],
)
def test_a_wrong_manifest_is_refused_before_anything_is_sent(text: str, problem: str, tmp_path: Path) -> None:
    manifest = tmp_path / "MANIFEST.jsonl"
    manifest.write_text(text)
    with pytest.raises(ClientError, match=problem):
        sources_of(tmp_path, "")


def test_a_directory_without_a_manifest_needs_a_tenant(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    with pytest.raises(ClientError, match="--tenant"):
        sources_of(tmp_path, "")
    (source,) = sources_of(tmp_path, "home")
    assert source.line.adapter == "home/a"


def test_a_key_follows_the_files_and_the_line_and_nothing_else(tmp_path: Path) -> None:
    keys = []
    for name, seed, note in [("a", 1, ""), ("copy", 1, ""), ("other", 2, ""), ("noted", 1, "n")]:
        write_adapter(tmp_path / name, seed)
        (tmp_path / "MANIFEST.jsonl").write_text(json.dumps({"adapter": "home/a", "path": name, "note": note}))
        (source,) = sources_of(tmp_path, "")
        keys.append(source.item()["key"])
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_chunks_are_bounded_in_number_and_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(70):
        write_adapter(tmp_path / f"a{number:02}")
    sources = sources_of(tmp_path, "home")
    assert [len(chunk) for chunk in chunks_of(sources)] == [32, 32, 6]
    monkeypatch.setattr("octavo_cli.import_source._CHUNK_BYTES_MAX", 3 * sources[0].size_bytes)
    chunks = list(chunks_of(sources))
    assert [source for chunk in chunks for source in chunk] == sources
    assert {len(chunk) for chunk in chunks} == {3, 1}
