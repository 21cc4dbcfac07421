"""A connection to a gateway: JSON there and back, and every failure as a ``ClientError``."""

import uuid
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self, TypeVar
from urllib.parse import quote, urlencode

import httpx

from octavo_cli.answers import ClientError, as_client_errors, check
from octavo_shared import decoding
from octavo_shared.references import Reference, parse_reference

PACK_TIMEOUT_S = 180.0
"""For what moves a pack on the gateway's side, or asks all workers."""
_CONNECT_TIMEOUT_S = 5.0
_TIMEOUT_S = 60.0


class Page(Protocol):
    """``next_after`` is what the next page comes after; empty: there is no more."""

    @property
    def next_after(self) -> str: ...


T = TypeVar("T")
P = TypeVar("P", bound=Page)


class Connection:
    """One connection to a gateway with one key. A context manager; several threads may use it at the same time."""

    def __init__(self, url: str, key: str) -> None:
        if not (key.isascii() and key.isprintable() and key.strip()):
            raise ClientError("no_key", "a key is wanted, as the gateway gave it out: 'oct_…'", 0)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _call(
        self,
        method: str,
        url: str,
        kind: type[T],
        body: object = None,
        *,
        query: Mapping[str, object] | None = None,
        write: str | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> T:
        """Return the answer as ``kind``. ``write`` is the idempotency key of what is no ``GET`` (None: a fresh one)."""
        headers = {} if method == "GET" else {"Idempotency-Key": write or uuid.uuid4().hex}
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        with as_client_errors():
            response = self._http.request(method, with_query(url, query), json=body, headers=headers, timeout=timeout)
            check(response)
            return decoding.from_json(response.content, kind)

    def _pages(self, url: str, kind: type[P], query: Mapping[str, object]) -> Iterator[P]:
        """Yield the pages of a list, from its begin to its end."""
        after = ""
        while True:
            page = self._call("GET", url, kind, query={**query, "after": after})
            yield page
            if not (after := page.next_after):
                return


def with_query(url: str, query: Mapping[str, object] | None) -> str:
    return f"{url}?{urlencode(query)}" if query else url


def adapter_path(adapter: str) -> str:
    """Return the route of ``tenant/adapter``; raises ``InvalidRequest`` when that is no adapter's name."""
    return f"/v1/adapters/{parse_reference(adapter, 'adapter').name}"


def revision_query(reference: Reference) -> dict[str, object]:
    """Return the query that names a reference's revision, by number, digest or alias; empty where it names none."""
    return {} if reference.selector is None else {"revision": reference.selector}


def path_part(text: str) -> str:
    """Return ``text`` as one part of a path."""
    return quote(text, safe="@")
