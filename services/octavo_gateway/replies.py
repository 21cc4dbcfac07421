"""OpenAI response bodies: whole answers, stream chunks, errors and the list of models."""

import time
from dataclasses import dataclass

import msgspec

from octavo_gateway.openai import Kind
from octavo_shared.errors import Fields, OctavoError
from octavo_shared.messages.generation import Timings


class OctavoUsage(msgspec.Struct, frozen=True):
    """Our extra to OpenAI's usage: where the time went, and which worker ended the answer."""

    timings: Timings
    worker_id: str


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    octavo: OctavoUsage


class Delta(msgspec.Struct, frozen=True, omit_defaults=True):
    role: str | msgspec.UnsetType = msgspec.UNSET
    content: str | msgspec.UnsetType = msgspec.UNSET


class AnswerMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: None
    finish_reason: str | None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: str


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A whole answer or one chunk of it. ``usage`` unset: the caller did not ask for it in this stream."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice] | list[ChatChoice] | list[TextChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str
    fields: Fields


class ErrorBody(msgspec.Struct, frozen=True):
    """``{"error": {…}}``: OpenAI's form, with the error's own fields beside it."""

    error: ErrorDetail


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: OctavoError) -> bytes:
    """Return the JSON of ``error`` in OpenAI's form."""
    kind = _TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "server_error")
    field = error.fields.get("field")
    detail = ErrorDetail(error.message, kind, str(field) if field is not None else None, error.code, error.fields)
    return msgspec.json.encode(ErrorBody(detail))


@dataclass(frozen=True)
class Scribe:
    """Writes the JSON of one answer; ``model`` is the name that was asked for."""

    kind: Kind
    request_id: str
    model: str
    system_fingerprint: str
    has_usage: bool
    created: int

    @classmethod
    def begin(cls, kind: Kind, request_id: str, model: str, system_fingerprint: str, *, has_usage: bool) -> "Scribe":
        return cls(kind, request_id, model, system_fingerprint, has_usage, int(time.time()))

    def opening(self) -> bytes | None:
        """Return the first chunk of a chat stream, which names the role; text completions have none."""
        return self._chunk(Delta(role="assistant", content="")) if self.kind is Kind.CHAT else None

    def piece(self, text: str) -> bytes:
        return self._chunk(Delta(content=text), text)

    def closing(self, reason: str, usage: Usage) -> list[bytes]:
        """Return the last chunks: the finish reason, then the usage if it was asked for."""
        chunks = [self._chunk(Delta(), "", reason)]
        if self.has_usage:
            chunks.append(msgspec.json.encode(self._answer([], usage, is_chunk=True)))
        return chunks

    def whole(self, text: str, reason: str, usage: Usage) -> bytes:
        """Return the body of an answer that was not streamed."""
        choices: list[ChatChoice] | list[TextChoice]
        if self.kind is Kind.CHAT:
            choices = [ChatChoice(0, AnswerMessage("assistant", text), None, reason)]
        else:
            choices = [TextChoice(0, text, None, reason)]
        return msgspec.json.encode(self._answer(choices, usage, is_chunk=False))

    def _chunk(self, delta: Delta, text: str = "", reason: str | None = None) -> bytes:
        choices: list[ChunkChoice] | list[TextChoice]
        if self.kind is Kind.CHAT:
            choices = [ChunkChoice(0, delta, None, reason)]
        else:
            choices = [TextChoice(0, text, None, reason)]
        usage = None if self.has_usage else msgspec.UNSET
        return msgspec.json.encode(self._answer(choices, usage, is_chunk=True))

    def _answer(
        self,
        choices: list[ChunkChoice] | list[ChatChoice] | list[TextChoice],
        usage: Usage | msgspec.UnsetType | None,
        *,
        is_chunk: bool,
    ) -> Answer:
        if self.kind is Kind.CHAT:
            prefix, kind = "chatcmpl-", "chat.completion.chunk" if is_chunk else "chat.completion"
        else:
            prefix, kind = "cmpl-", "text_completion"
        return Answer(prefix + self.request_id, kind, self.created, self.model, self.system_fingerprint, choices, usage)
