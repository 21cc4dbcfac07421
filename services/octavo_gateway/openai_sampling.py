"""How a body wants its tokens chosen, into the worker's ``Sampling``; every bound is told by the field's name."""

import secrets

import msgspec

from octavo_gateway.openai_fields import ChatBody, CompletionBody, ResponseFormat
from octavo_shared.errors import InvalidRequest
from octavo_shared.messages.generation import Sampling

_SEED_MAX = 2**63
_BIASES_MAX = 300
_BIAS_MAX = 100.0
_PENALTY_MAX = 2.0
_TOP_K_MAX = 2**31 - 1
_SCHEMA_BYTES_MAX = 64 * 1024
_ANY_OBJECT = '{"type": "object"}'


def sampling_of(
    body: ChatBody | CompletionBody, max_tokens: int | None, num_logprobs: int | None, schema: str
) -> Sampling:
    """Return the worker's form, with a seed always: another attempt at the request continues with the same noise.

    ``max_tokens`` None becomes 0, to be filled in. Raises ``InvalidRequest`` naming the field that is out of bounds.
    """
    check_range("temperature", body.temperature, 0.0, 2.0)
    check_range("presence_penalty", body.presence_penalty, -_PENALTY_MAX, _PENALTY_MAX)
    check_range("frequency_penalty", body.frequency_penalty, -_PENALTY_MAX, _PENALTY_MAX)
    check_range("min_p", body.min_p, 0.0, 1.0)
    # Both 0 and -1 are in use for all tokens.
    check_range("top_k", body.top_k, -1, _TOP_K_MAX)
    check_range("min_tokens", body.min_tokens, 0, _TOP_K_MAX if max_tokens is None else max_tokens)
    if body.top_p is not None and not 0.0 < body.top_p <= 1.0:
        raise InvalidRequest("top_p", "must be above 0 and at most 1")
    if body.repetition_penalty is not None and not 0.0 < body.repetition_penalty <= _PENALTY_MAX:
        raise InvalidRequest("repetition_penalty", f"must be above 0 and at most {_PENALTY_MAX:g}")
    if body.seed is not None and not -_SEED_MAX <= body.seed < _SEED_MAX:
        raise InvalidRequest("seed", "must fit 64 bits")
    return Sampling(
        max_tokens=max_tokens or 0,
        seed=secrets.randbits(63) if body.seed is None else body.seed % _SEED_MAX,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        top_k=max(0, body.top_k or 0),
        min_p=_or(body.min_p, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        logit_bias=_biases(body.logit_bias or {}),
        min_tokens=body.min_tokens or 0,
        num_logprobs=-1 if num_logprobs is None else num_logprobs,
        schema=schema,
    )


def schema_of(wanted: ResponseFormat | None) -> str:
    """Return the JSON schema that the answer must satisfy, or an empty text; it is compiled later, with the base."""
    if wanted is None or wanted.type == "text":
        return ""
    if wanted.type == "json_object":
        return _ANY_OBJECT
    if wanted.json_schema is None:
        raise InvalidRequest("response_format.json_schema", "is required")
    schema = wanted.json_schema.schema
    if schema is None:
        return _ANY_OBJECT
    encoded = msgspec.json.encode(schema)
    if len(encoded) > _SCHEMA_BYTES_MAX:
        raise InvalidRequest("response_format.json_schema.schema", f"is larger than {_SCHEMA_BYTES_MAX} bytes")
    return encoded.decode()


def check_range(field: str, value: float | None, least: float, most: float) -> None:
    """Raise ``InvalidRequest`` when ``value`` is given and not between ``least`` and ``most``."""
    if value is not None and not least <= value <= most:
        raise InvalidRequest(field, f"must be between {least:g} and {most:g}")


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _biases(given: dict[str, float]) -> tuple[tuple[int, float], ...]:
    if len(given) > _BIASES_MAX:
        raise InvalidRequest("logit_bias", f"may name at most {_BIASES_MAX} tokens")
    biases = []
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise InvalidRequest("logit_bias", "must have token ids as its keys")
        check_range("logit_bias", bias, -_BIAS_MAX, _BIAS_MAX)
        biases.append((int(name), bias))
    return tuple(sorted(biases))


def complete(sampling: Sampling, max_tokens: int, stop_token_ids: tuple[int, ...], num_vocabulary: int) -> Sampling:
    """Return ``sampling`` with what the base's text adds; raises ``InvalidRequest`` for tokens that it has not."""
    if any(token >= num_vocabulary for token, _ in sampling.logit_bias):
        raise InvalidRequest("logit_bias", f"names a token id outside 0 to {num_vocabulary - 1}")
    return msgspec.structs.replace(sampling, max_tokens=max_tokens, stop_token_ids=stop_token_ids)
