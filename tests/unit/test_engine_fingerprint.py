"""The fingerprint: equal for what answers the same, and another as soon as anything that is served differs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from octavo_worker.model.base import load_base
from octavo_worker.model.context import UnsupportedBase
from octavo_worker.model.fingerprint import fingerprint_of
from octavo_worker.model.served_form import served_form_of
from support.engines import TINY_LLAMA, save_base


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(TINY_LLAMA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_base(_llama(), tmp_path / "base")


def test_sharding_and_who_wrote_the_file_change_nothing_and_all_else_does(tmp_path: Path) -> None:
    model = _llama()
    whole = save_base(model, tmp_path / "whole")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    (tmp_path / "sharded" / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    config = tmp_path / "sharded" / "config.json"
    config.write_text(config.read_text().replace('"transformers_version": "', '"transformers_version": "9'))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert fingerprint_of(tmp_path / "sharded") == fingerprint_of(whole)

    config.write_text(config.read_text().replace('"vocab_size": 97', '"vocab_size": 98'))
    assert fingerprint_of(tmp_path / "sharded") != fingerprint_of(whole)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    assert fingerprint_of(save_base(model, tmp_path / "other")) != fingerprint_of(whole)
    with pytest.raises(UnsupportedBase, match=r"config\.json does not exist"):
        fingerprint_of(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ messages }}"),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ bos_token }}"})),
        ("tokenizer_config.json", json.dumps({"bos_token": {"content": "<s>"}})),
        ("tokenizer_config.json", json.dumps({"eos_token": "</s>"})),
        ("generation_config.json", json.dumps({"eos_token_id": [2, 7]})),
    ],
)
def test_whatever_the_manifest_says_is_in_the_fingerprint(folder: Path, name: str, content: str) -> None:
    before, form = fingerprint_of(folder), served_form_of(folder)
    (folder / name).write_text(content)
    assert served_form_of(folder) != form
    assert fingerprint_of(folder) != before


def test_a_base_in_another_dtype_is_another_base_and_in_its_own_the_same(folder: Path) -> None:
    assert fingerprint_of(folder, torch.float32) == fingerprint_of(folder)
    assert fingerprint_of(folder, torch.bfloat16) != fingerprint_of(folder)


def test_the_dtype_is_the_weights_own_where_the_configuration_names_none(tmp_path: Path) -> None:
    folder = save_base(_llama().to(torch.bfloat16), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert served_form_of(folder).dtype == "bfloat16"
    assert load_base(folder).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_loaded_base_is_what_its_directory_says(folder: Path, dtype: torch.dtype | None) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 2]}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    base, form = load_base(folder, "cpu", dtype), served_form_of(folder, dtype)
    assert base.fingerprint == base.manifest.fingerprint == fingerprint_of(folder, dtype)
    assert base.manifest.dtype == form.dtype == str(base.dtype).removeprefix("torch.")
    assert base.manifest.stop_token_ids == (2, 7)
    assert (base.manifest.chat_template, base.manifest.context_tokens) == ("{{ messages }}", 512)
