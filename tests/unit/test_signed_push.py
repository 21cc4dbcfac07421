"""What a pusher signs is made of the pusher's own files, and never what a server would like to have signed."""

from pathlib import Path

import msgspec
import pytest

from octavo_cli.answers import ClientError
from octavo_cli.signed_push import Pushed, Signing
from octavo_identity.building import build, read_back
from octavo_shared import dsse, provenance
from octavo_shared.dsse import Signer
from octavo_shared.errors import AdapterRefused, BaseMismatch
from octavo_shared.messages.pushing import UploadBegun
from octavo_shared.provenance import Facts
from octavo_shared.references import Digest, Fingerprint
from octavo_shared.safetensors_form import write_tensors
from support.adapters import (
    TINY_BASE,
    TINY_FINGERPRINT,
    config_json,
    q_proj_modules,
    tiny_tensors,
    tiny_weights,
    write_adapter,
)

SIGNER = Signer(bytes([1]) * 32)
BEGUN = UploadBegun("u" * 16, 1 << 20, "alice@home", Digest("sha256:" + "3" * 64), TINY_FINGERPRINT)


def pushed(folder: Path, base: str | None = None, dtype: str | None = None) -> Pushed:
    write_adapter(folder, 1)
    files = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    return Pushed("home/diary", *files, base, dtype, Signing(SIGNER, Facts()))


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_the_digest_is_that_of_the_pack_which_the_registry_makes(tmp_path: Path, dtype: str | None) -> None:
    envelope = pushed(tmp_path, dtype=dtype).sign(BEGUN)
    dsse.verify(envelope, [SIGNER.public_key])
    built = read_back(build(config_json(), tiny_weights(1), TINY_BASE, dtype))
    said = provenance.parse(envelope.data)
    assert (str(said.subject[0].digest), said.subject[0].name) == (built.digest, "home/diary")
    assert said.predicate.parent is not None
    assert str(said.predicate.parent.digest) == BEGUN.parent
    assert {"rank": 4, "alpha": 8.0}.items() <= said.predicate.hyperparameters.items()


def test_signed_again_it_is_of_the_new_parent_and_of_the_same_pack(tmp_path: Path) -> None:
    own = pushed(tmp_path)
    first = provenance.parse(own.sign(BEGUN).data)
    second = provenance.parse(own.sign(msgspec.structs.replace(BEGUN, parent=None)).data)
    assert second.predicate.parent is None
    assert second.subject == first.subject


def test_no_other_base_is_signed_than_the_one_that_was_given(tmp_path: Path) -> None:
    pushed(tmp_path, TINY_FINGERPRINT).sign(BEGUN)
    pushed(tmp_path, "tiny").sign(BEGUN)
    with pytest.raises(BaseMismatch):
        pushed(tmp_path, "sha256:" + "9" * 64).sign(BEGUN)
    with pytest.raises(ClientError, match="--base"):
        pushed(tmp_path).sign(msgspec.structs.replace(BEGUN, base=None))


def test_another_base_is_another_pack(tmp_path: Path) -> None:
    own = pushed(tmp_path)
    first = provenance.parse(own.sign(BEGUN).data)
    other = msgspec.structs.replace(BEGUN, base=Fingerprint("sha256:" + "9" * 64))
    assert provenance.parse(own.sign(other).data).subject != first.subject


def test_what_makes_no_pack_is_refused_by_the_rule_that_it_breaks(tmp_path: Path) -> None:
    own, tensors = pushed(tmp_path), tiny_tensors(q_proj_modules())
    half = dict(list(tensors.items())[:1])
    strange = {name.replace("lora_A", "lora_E"): tensor for name, tensor in tensors.items()}
    for weights, rule in (
        (write_tensors(half, {}), "partner"),
        (write_tensors(strange, {}), "tensor_name"),
        (b"PK\x03\x04" * 9, "pickle"),
        (b"", "format"),
    ):
        own.weights.write_bytes(weights)
        with pytest.raises(AdapterRefused) as caught:
            own.sign(BEGUN)
        assert caught.value.fields["rule"] == rule
    own.config.write_bytes(b"[]")
    with pytest.raises(AdapterRefused, match="not a JSON object"):
        own.sign(BEGUN)
