"""What a caller asks wrongly, may not ask, or asks too much of."""

from octavo_shared.errors.tree import OctavoError


class InvalidRequest(OctavoError):
    code, http_status = "invalid_request", 400

    def __init__(self, field: str, problem: str, **fields: str | int | float) -> None:
        super().__init__(f"'{field}' {problem}", field=field, **fields)


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"

    def __init__(self, field: str, problem: str = "is not supported") -> None:
        super().__init__(field, problem)


class ContextExceeded(InvalidRequest):
    code = "context_length_exceeded"

    def __init__(self, field: str, *, prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
        super().__init__(
            field,
            f"does not fit: {prompt_tokens} prompt tokens and {max_tokens} new tokens exceed "
            f"the context of {context_tokens} tokens",
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
        )


class Unauthenticated(OctavoError):
    code, http_status = "unauthenticated", 401

    def __init__(self) -> None:
        super().__init__("a valid API key is required: send 'Authorization: Bearer <key>'")


class NotPermitted(OctavoError):
    code, http_status = "not_permitted", 403

    def __init__(self, action: str) -> None:
        super().__init__(f"this key may not {action}", action=action)


class QuotaExceeded(OctavoError):
    """``quota`` is its name, ``used`` what there is and is on its way."""

    code, http_status = "quota_exceeded", 403

    def __init__(self, quota: str, *, limit: int, used: int, problem: str = "", **fields: int) -> None:
        super().__init__(
            f"the tenant's quota '{quota}' is {limit}, of which {used} are used{problem}",
            quota=quota, limit=limit, used=used, **fields,
        )  # fmt: skip


class DailyQuotaExceeded(QuotaExceeded):
    code, http_status = "daily_quota_exceeded", 429

    def __init__(self, quota: str, *, limit: int, used: int, retry_after_s: int) -> None:
        problem = f"; it begins again in {retry_after_s} s"
        super().__init__(quota, limit=limit, used=used, problem=problem, retry_after_s=retry_after_s)


class BodyTooLarge(OctavoError):
    code, http_status = "body_too_large", 413

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the body exceeds the limit of {limit_bytes} bytes", limit_bytes=limit_bytes)


class UploadTooLarge(OctavoError):
    code, http_status = "upload_too_large", 413

    def __init__(self, *, limit_bytes: int) -> None:
        super().__init__(f"the upload exceeds the limit of {limit_bytes} bytes", limit_bytes=limit_bytes)


class Overloaded(OctavoError):
    code, http_status, is_retryable = "overloaded", 429, True

    def __init__(self, *, retry_after_s: int) -> None:
        super().__init__(f"too many requests; retry after {retry_after_s} s", retry_after_s=retry_after_s)
