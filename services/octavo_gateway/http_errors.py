"""Every error leaves as OpenAI's JSON, also those of the framework: unknown routes, wrong methods, large bodies."""

from typing import ClassVar

from litestar import Response
from litestar.exceptions import HTTPException, ValidationException

from octavo_gateway.bodies import BODY_BYTES_MAX
from octavo_gateway.http_request import AnyRequest
from octavo_gateway.replies import error_body
from octavo_shared.errors import BodyTooLarge, InternalError, InvalidRequest, OctavoError
from octavo_shared.telemetry import log


class _RouteError(OctavoError):
    """An error of HTTP itself, which has no place in the tree that services share."""

    code: ClassVar[str] = "http_error"
    http_status: ClassVar[int] = 400


class RouteNotFound(_RouteError):
    code, http_status = "route_not_found", 404


class MethodNotAllowed(_RouteError):
    code, http_status = "method_not_allowed", 405


_ROUTE_ERRORS = {404: RouteNotFound("no such route"), 405: MethodNotAllowed("this route has other methods")}


def error_response(error: OctavoError) -> Response[bytes]:
    """Return ``error`` as a response; an overload and a quota of a day say when to come back."""
    headers = {}
    if "retry_after_s" in error.fields:
        headers["Retry-After"] = str(error.fields["retry_after_s"])
    if error.http_status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_body(error), status_code=error.http_status, headers=headers, media_type="application/json")


def on_octavo_error(_: AnyRequest, error: OctavoError) -> Response[bytes]:
    return error_response(error)


def on_http_error(_: AnyRequest, error: HTTPException) -> Response[bytes]:
    if error.status_code >= 500:
        failure = InternalError()
        log.error("http_failed", error_id=failure.fields["error_id"], detail=error.detail)
        return error_response(failure)
    if error.status_code == 413:
        return error_response(BodyTooLarge(limit_bytes=BODY_BYTES_MAX))
    if isinstance(error, ValidationException) and isinstance(error.extra, list) and error.extra:
        problem = error.extra[0]
        return error_response(InvalidRequest(str(problem.get("key", "query")), f"is wrong: {problem.get('message')}"))
    return error_response(_ROUTE_ERRORS.get(error.status_code) or _RouteError(error.detail))


def on_crash(request: AnyRequest, error: Exception) -> Response[bytes]:
    failure = InternalError()
    log.error("http_crashed", error_id=failure.fields["error_id"], path=request.scope["path"], exc_info=error)
    return error_response(failure)
