"""What a base must be, as far as its configuration tells: asked before its weights are read."""

from collections.abc import Iterator, Mapping

from transformers import PretrainedConfig

from octavo_worker.model.context import UnsupportedBase

_COUPLING_ROPES = {"dynamic", "longrope"}
"""Rotary embeddings computed from the largest position of the batch: neighbours would change each other."""
_ATTENDING = {"full_attention", "sliding_attention"}
_CHUNKED = "chunked_attention"
_WINDOWS = ("sliding_window", "sliding_window_size", "window_size", "local_attention", "attention_window_size",
            "attention_chunk_size")  # fmt: skip


def check_config(config: PretrainedConfig) -> None:
    """Raise ``UnsupportedBase`` with one sentence for what no worker serves, whatever the weights are."""
    text = config.get_text_config()
    name = config.model_type
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise UnsupportedBase(f"architecture '{name}' is an encoder with a decoder; only decoders are served")
    if not getattr(text, "num_attention_heads", None):
        raise UnsupportedBase(f"architecture '{name}' has no attention heads; only decoders that attend are served")
    for said in (config, text):
        if quantisation := getattr(said, "quantization_config", None):
            raise UnsupportedBase(
                f"this base is quantised ('{_method_of(quantisation)}'), which is not served; save it dequantised, "
                "as bfloat16, float16 or float32"
            )
    if kinds := sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENDING):
        what = "attend in chunks" if kinds[0] == _CHUNKED else f"are of kind '{kinds[0]}'"
        raise UnsupportedBase(
            f"layers of architecture '{name}' {what}; served are layers that attend to all or to a sliding window"
        )
    if coupling := _COUPLING_ROPES.intersection(_rope_types(getattr(text, "rope_parameters", None))):
        raise UnsupportedBase(f"rotary embedding '{min(coupling)}' depends on the longest sequence of a batch")


def window_max(config: PretrainedConfig, context_tokens: int) -> int:
    """Return the longest window that a sequence of ``context_tokens`` can outgrow, 0 without any."""
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return max((window for window in windows if isinstance(window, int) and window < context_tokens), default=0)


def _method_of(quantisation: object) -> str:
    said = quantisation if isinstance(quantisation, Mapping) else vars(quantisation)
    method = said.get("quant_method") or "by an unnamed method"
    return str(getattr(method, "value", method))


def _rope_types(parameters: object) -> Iterator[str]:
    # One mapping for all layers, or one for each kind of layer.
    if isinstance(parameters, Mapping):
        if isinstance(kind := parameters.get("rope_type"), str):
            yield kind
        for nested in parameters.values():
            yield from _rope_types(nested)
