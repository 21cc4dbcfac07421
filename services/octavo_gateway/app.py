"""The HTTP application: all routes, one form of error, one bound on bodies, the OpenAPI page."""

from collections.abc import Callable
from typing import Any

from litestar import Litestar
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig

from octavo_gateway.bodies import BODY_BYTES_MAX
from octavo_gateway.http_errors import on_crash, on_http_error, on_octavo_error
from octavo_shared.errors import OctavoError
from octavo_shared.service import probe_routes


def build_app(routes: list[Any], is_ready: Callable[[], bool]) -> Litestar:
    """Return the application over ``routes`` and the probes."""
    return Litestar(
        [*routes, *probe_routes(is_ready)],
        request_max_body_size=BODY_BYTES_MAX,
        exception_handlers={
            OctavoError: on_octavo_error,
            HTTPException: on_http_error,
            Exception: on_crash,
        },
        openapi_config=OpenAPIConfig(title="Octavo", version="1", path="/schema"),
        logging_config=None,
    )
