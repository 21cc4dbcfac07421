"""What the engine can serve at all: asked of every request before it is queued."""

from octavo_shared.errors import ContextExceeded, InvalidRequest
from octavo_worker.engine.sequence import SequenceRequest


def check_request(request: SequenceRequest, vocab_size: int, context_tokens: int) -> None:
    """Raise ``InvalidRequest`` or ``ContextExceeded``, naming the field, when ``request`` cannot be served."""
    given = (*request.prompt, *request.forced)
    if not request.prompt:
        raise InvalidRequest("prompt", "has no tokens")
    if min(given) < 0 or max(given) >= vocab_size:
        # It would fail inside the batch, and take the neighbours with it.
        raise InvalidRequest("prompt", f"holds token ids outside 0 to {vocab_size - 1}")
    if any(not 0 <= token < vocab_size for token, _ in request.sampling.logit_bias):
        raise InvalidRequest("logit_bias", f"names token ids outside 0 to {vocab_size - 1}")
    if request.sampling.is_scored and (request.sampling.max_tokens or request.forced):
        raise InvalidRequest("max_tokens", "must be 0 where the prompt is scored")
    if len(request.prompt) + request.sampling.max_tokens > context_tokens:
        raise ContextExceeded(
            "prompt",
            prompt_tokens=len(request.prompt),
            max_tokens=request.sampling.max_tokens,
            context_tokens=context_tokens,
        )
