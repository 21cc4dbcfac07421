"""What the client makes of a gateway's answers, good and bad, from a real socket."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from octavo_cli.answers import Answer, ClientError
from octavo_cli.client import Client

_CHUNK = b'data: {"choices": [{"index": 0, "delta": {"content": "%s"}, "finish_reason": null}]}\n\n'
_USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}\n\n'
_ERROR = b'{"error": {"message": "every attempt ended", "type": "server_error", "code": "worker_lost", "fields": {}}}'


class _Gateway(HTTPServer):
    status = 200
    body = b""


class _Handler(BaseHTTPRequestHandler):
    server: _Gateway

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        for name, value in (("octavo-revision", "3"), ("octavo-tier", "cold"), ("octavo-digest", "sha256:ab")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: object) -> None:
        """Stay silent: the tests look at what the client says."""


@pytest.fixture
def gateway() -> Iterator[_Gateway]:
    with _Gateway(("127.0.0.1", 0), _Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _ask(gateway: _Gateway, answer: Answer) -> list[str]:
    with Client(f"http://127.0.0.1:{gateway.server_port}", "key") as client:
        return list(client.ask("a/b", "hi", answer, max_tokens=4, temperature=0.0))


def test_a_stream_yields_its_text_and_fills_the_answer(gateway: _Gateway) -> None:
    gateway.body = _CHUNK % b"one " + _CHUNK % b"two" + _USAGE + b"data: [DONE]\n\n"
    answer = Answer()
    assert _ask(gateway, answer) == ["one ", "two"]
    assert (answer.revision, answer.digest, answer.tier, answer.num_completion_tokens) == (3, "sha256:ab", "cold", 2)
    assert 0 < answer.ttft_ms <= answer.total_ms


def test_an_error_in_the_middle_of_a_stream_is_raised(gateway: _Gateway) -> None:
    gateway.body = _CHUNK % b"one " + b"data: " + _ERROR + b"\n\n"
    with pytest.raises(ClientError, match="every attempt ended") as caught:
        _ask(gateway, Answer())
    assert caught.value.code == "worker_lost"


def test_a_stream_that_is_cut_off_is_never_taken_for_a_whole_one(gateway: _Gateway) -> None:
    gateway.body = _CHUNK % b"one "
    with pytest.raises(ClientError) as caught:
        _ask(gateway, Answer())
    assert caught.value.code == "connection_lost"


def test_a_refusal_carries_the_code_and_status_of_the_gateway(gateway: _Gateway) -> None:
    gateway.status, gateway.body = 503, _ERROR
    with pytest.raises(ClientError) as caught:
        _ask(gateway, Answer())
    assert (caught.value.code, caught.value.status) == ("worker_lost", 503)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b""])
def test_an_answer_that_is_not_ours_is_one_clear_error(gateway: _Gateway, body: bytes) -> None:
    gateway.status, gateway.body = 502, body
    with pytest.raises(ClientError, match="status 502"):
        _ask(gateway, Answer())


def test_a_gateway_that_is_not_there_is_named() -> None:
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(ClientError, match=r"http://127\.0\.0\.1:1"):
        client.models()


@pytest.mark.parametrize("key", ["", "   ", "oct_1\n", "oct_…"])
def test_what_can_be_no_key_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(ClientError) as refused:
        Client("http://127.0.0.1:1", key)
    assert refused.value.code == "no_key"
