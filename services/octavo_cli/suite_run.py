"""Runs a suite through the serving path, some items at a time, and goes on where an interrupted run stopped."""

import hashlib
import os
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import httpx
import msgspec

from octavo_cli.answers import ClientError, as_client_errors
from octavo_cli.evaluation_client import EvaluationClient
from octavo_cli.scoring import Result, SlowPattern, judge, likelihood
from octavo_cli.suite import Check, Item, Suite
from octavo_shared import decoding
from octavo_shared.messages.evaluation import EvaluationList

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class _Message(msgspec.Struct, frozen=True):
    content: str = ""


class _Logprobs(msgspec.Struct, frozen=True):
    token_logprobs: list[float | None] = []
    text_offset: list[int] = []


class _Choice(msgspec.Struct, frozen=True):
    message: _Message = _Message()
    text: str = ""
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct, frozen=True):
    choices: list[_Choice]


class _Done(msgspec.Struct, frozen=True):
    number: int
    result: Result


class RunFile:
    """What a run has found so far, a line per item, and the idempotency key that its end is recorded under."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.results: dict[int, Result] = {}
        self.write = uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        try:
            self.write = decoding.from_json(lines[0], str)
            for line in lines[1:]:
                done = decoding.from_json(line, _Done)
                self.results[done.number] = done.result
        except (msgspec.MsgspecError, IndexError):
            # The last line of an interrupted run may be torn; what comes after it was never written.
            pass
        # Begun anew, so that whatever was torn is gone before more is added.
        self._file = path.open("wb")
        self._put(msgspec.json.encode(self.write))
        for number, result in self.results.items():
            self._put(msgspec.json.encode(_Done(number, result)))

    def add(self, item: Item, result: Result) -> None:
        self.results[item.number] = result
        self._put(msgspec.json.encode(_Done(item.number, result)))

    def close(self) -> None:
        self._file.close()

    def discard(self) -> None:
        """The run is recorded."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _put(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        self._file.flush()


def run_file(gateway: str, key: str, view: EvaluationList, suite: Suite) -> RunFile:
    """Return the file of runs of this suite on this revision there with this key."""
    scope = (gateway.rstrip("/"), key, view.name, str(view.revision.number), view.revision.digest, suite.digest)
    mark = hashlib.sha256("\0".join(scope).encode()).hexdigest()[:32]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return RunFile(cache / "octavo" / "evaluations" / mark)


def run_suite(
    client: EvaluationClient,
    view: EvaluationList,
    suite: Suite,
    file: RunFile,
    num_at_once: int,
    advance: Callable[[int], None],
) -> Sequence[Result]:
    """Ask what ``file`` has not yet, ``num_at_once`` at a time, and return all results in the suite's order.

    ``advance`` is called with how many are done. The first item that cannot be asked or judged ends the run; what was
    found until then is kept.
    """
    left = [item for item in suite.items if item.number not in file.results]
    advance(len(suite.items) - len(left))
    with ThreadPoolExecutor(num_at_once, thread_name_prefix="evaluate") as threads:
        asked = {threads.submit(_ask, client, view, item): item for item in left}
        try:
            for done in as_completed(asked):
                file.add(asked[done], done.result())
                advance(len(file.results))
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
    return [file.results[item.number] for item in suite.items]


def _ask(client: EvaluationClient, view: EvaluationList, item: Item) -> Result:
    line = item.line
    body: dict[str, object] = {"model": f"{view.name}@{view.revision.number}", "temperature": 0}
    try:
        if line.check is Check.PERPLEXITY:
            assert line.prompt is not None, "the suite was checked"
            body |= {"prompt": line.prompt + line.expect, "max_tokens": 0, "echo": True, "logprobs": 0}
            told = _choice(client.answer(_COMPLETIONS, body), view).logprobs or _Logprobs()
            return likelihood(line.prompt, told.token_logprobs, told.text_offset)
        body["max_tokens"] = line.max_tokens
        if line.messages is not None:
            body["messages"] = [msgspec.to_builtins(message) for message in line.messages]
            return judge(line, _choice(client.answer(_CHAT, body), view).message.content)
        body["prompt"] = line.prompt
        return judge(line, _choice(client.answer(_COMPLETIONS, body), view).text)
    except SlowPattern:
        raise ClientError("bad_suite", f"line {item.number}: the pattern takes too long to be matched", 0) from None
    except ClientError as error:
        raise ClientError(error.code, f"line {item.number}: {error.message}", error.status) from None


def _choice(response: httpx.Response, view: EvaluationList) -> _Choice:
    """Return the answer, once it is sure what gave it."""
    revision = view.revision
    gave = (response.headers.get("octavo-digest"), response.headers.get("octavo-base"))
    if gave != (revision.digest, revision.base):
        raise ClientError("wrong_revision", f"the answer came from {gave[0]} on base {gave[1]}", 0)
    with as_client_errors():
        return decoding.from_json(response.content, _Answer).choices[0]
