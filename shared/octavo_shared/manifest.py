"""The base manifest: what others than the worker need to know of the base, published once to S3.

``bases/<fingerprint>/manifest.json`` beside ``tokenizer.json``; ``<fingerprint>`` is the hexadecimal part.
The chat template and special tokens are inside the manifest. It is written last, so visible means complete.
"""

import msgspec

from octavo_shared import decoding
from octavo_shared.objects import ObjectMissing, ObjectStore, ObjectTooLarge
from octavo_shared.references import Fingerprint

MANIFEST_BYTES_MAX = 16 * 1024 * 1024
TOKENIZER_BYTES_MAX = 128 * 1024 * 1024


class ModuleShape(msgspec.Struct, frozen=True):
    """A linear module that an adapter may target; features of its input and output."""

    in_features: int
    out_features: int


class BaseManifest(msgspec.Struct, frozen=True):
    """``modules`` maps a module's full name in the model (``model.layers.0.self_attn.q_proj``) to its shape."""

    name: str
    fingerprint: Fingerprint
    context_tokens: int
    dtype: str
    chat_template: str
    bos_token: str
    eos_token: str
    stop_token_ids: tuple[int, ...]
    modules: dict[str, ModuleShape]
    num_layers: int


def _folder(fingerprint: Fingerprint) -> str:
    return f"bases/{fingerprint.removeprefix('sha256:')}"


class ManifestConflict(Exception):
    """Another manifest is published under the same fingerprint; the message is one sentence."""


async def publish_base(store: ObjectStore, manifest: BaseManifest, tokenizer_json: bytes) -> None:
    """Store a base's manifest and tokenizer; publishing the same base again changes nothing.

    Gateways and identity read what is published, so it is never replaced under their feet: raises
    ``ManifestConflict`` when it differs. The name may differ, being only that of a directory; the first one stays.
    """
    folder = _folder(manifest.fingerprint)
    try:
        published = await fetch_base(store, manifest.fingerprint)
    except (msgspec.MsgspecError, ObjectTooLarge):
        raise ManifestConflict(f"{folder}/manifest.json is there and is not a base manifest") from None
    if published is None:
        await store.write(f"{folder}/tokenizer.json", tokenizer_json)
        await store.write(f"{folder}/manifest.json", msgspec.json.encode(manifest))
    elif differing := _differing(*published, manifest, tokenizer_json):
        raise ManifestConflict(
            f"{folder} already describes this base otherwise ({', '.join(differing)}); "
            "remove it there if no worker serves it any more"
        )


def _differing(
    published: BaseManifest, published_tokenizer: bytes, manifest: BaseManifest, tokenizer_json: bytes
) -> list[str]:
    names = [name for name in manifest.__struct_fields__ if getattr(published, name) != getattr(manifest, name)]
    names += ["tokenizer"] if published_tokenizer != tokenizer_json else []
    return [name for name in names if name != "name"]


async def fetch_base(store: ObjectStore, fingerprint: Fingerprint) -> tuple[BaseManifest, bytes] | None:
    """Return a base's manifest and ``tokenizer.json``, or None when it was never published.

    Raises ``MsgspecError`` or ``ObjectTooLarge`` when what lies there was not published by us.
    """
    if (manifest := await fetch_manifest(store, fingerprint)) is None:
        return None
    try:
        return manifest, await store.read(f"{_folder(fingerprint)}/tokenizer.json", TOKENIZER_BYTES_MAX)
    except ObjectMissing:
        return None


async def fetch_manifest(store: ObjectStore, fingerprint: Fingerprint) -> BaseManifest | None:
    """Return a base's manifest alone, or None when it was never published; raises as ``fetch_base`` does."""
    try:
        raw = await store.read(f"{_folder(fingerprint)}/manifest.json", MANIFEST_BYTES_MAX)
    except ObjectMissing:
        return None
    return decoding.from_json(raw, BaseManifest)
