"""OpenAI response bodies: whole answers, stream chunks, errors and the list of models."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from octavo_gateway.call import Echo, ShownToken
from octavo_gateway.logprobs import Logprobs, LogprobsWriter, echoed
from octavo_gateway.openai import Kind
from octavo_shared.errors import Fields, OctavoError
from octavo_shared.messages.generation import Timings


class OctavoUsage(msgspec.Struct, frozen=True):
    """Our extra to OpenAI's usage: where the time went, and which worker ended the answer."""

    timings: Timings
    worker_id: str


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """``cached_tokens`` of the prompt were not computed again."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    octavo: OctavoUsage
    prompt_tokens_details: PromptTokensDetails


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
    logprobs: Logprobs | None
    finish_reason: str | None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: str


class TextChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: Logprobs | None
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


@dataclass
class WholeChoice:
    """One answer while it is collected."""

    writer: LogprobsWriter
    pieces: list[str] = field(default_factory=list)
    tokens: list[ShownToken] = field(default_factory=list)
    reason: str = ""
    echo: Echo | None = None

    @property
    def text(self) -> str:
        return self.echo.text if self.echo else "".join(self.pieces)

    @property
    def logprobs(self) -> Logprobs | None:
        return echoed(self.echo) if self.echo else self.writer.write(self.tokens)


@dataclass(frozen=True)
class Scribe:
    """Writes the JSON of one request's answers; ``model`` is the name that was asked for."""

    kind: Kind
    request_id: str
    model: str
    system_fingerprint: str
    has_usage: bool
    created: int

    @classmethod
    def begin(cls, kind: Kind, request_id: str, model: str, system_fingerprint: str, *, has_usage: bool) -> "Scribe":
        return cls(kind, request_id, model, system_fingerprint, has_usage, int(time.time()))

    def opening(self, choice: int) -> bytes | None:
        """Return the first chunk of a chat stream, which names the role; text completions have none."""
        if self.kind is not Kind.CHAT:
            return None
        return self._chunk(choice, Delta(role="assistant", content=""), "", None)

    def piece(self, choice: int, text: str, logprobs: Logprobs | None) -> bytes:
        return self._chunk(choice, Delta(content=text), text, logprobs)

    def closing(self, choice: int, reason: str, logprobs: Logprobs | None) -> bytes:
        """Return the last chunk of one answer."""
        return self._chunk(choice, Delta(), "", logprobs, reason)

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk behind all answers, for a caller that asked for it."""
        return msgspec.json.encode(self._answer([], usage, is_chunk=True))

    def whole(self, answers: Sequence[WholeChoice], usage: Usage) -> bytes:
        """Return the body of answers that were not streamed."""
        choices: list[ChatChoice] | list[TextChoice]
        if self.kind is Kind.CHAT:
            choices = [
                ChatChoice(index, AnswerMessage("assistant", one.text), one.logprobs, one.reason)
                for index, one in enumerate(answers)
            ]
        else:
            choices = [TextChoice(index, one.text, one.logprobs, one.reason) for index, one in enumerate(answers)]
        return msgspec.json.encode(self._answer(choices, usage, is_chunk=False))

    def _chunk(
        self, choice: int, delta: Delta, text: str, logprobs: Logprobs | None, reason: str | None = None
    ) -> bytes:
        choices: list[ChunkChoice] | list[TextChoice]
        if self.kind is Kind.CHAT:
            choices = [ChunkChoice(choice, delta, logprobs, reason)]
        else:
            choices = [TextChoice(choice, text, logprobs, reason)]
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
