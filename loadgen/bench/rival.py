"""A rival's process as the comparison sees it: started, spoken to, paused while another one has its turn."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from bench.drivers.messages import Answers, Close, Command, Failed, Job, Load, LoadTime, Ready, Reply
from octavo_shared import decoding

START_TIMEOUT_S = 600.0
_REPLY_TIMEOUT_S = 1800.0
_CLOSE_TIMEOUT_S = 30.0
_TAIL_BYTES = 2000


class RivalFailed(Exception):
    """A rival could not be started or did not do what it was asked; the message says why."""


@dataclass(frozen=True)
class Variant:
    """One way to set a rival: a command and the environment variables that differ from ours."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


class Rival:
    """One running driver. Use ``running``; between its turns it is stopped, and takes no time from the others."""

    def __init__(self, variant: Variant, log: Path) -> None:
        self.variant = variant
        self.ready = Ready({}, {})
        self._log = log
        self._buffer = b""
        try:
            with log.open("wb") as errors:
                # A session of its own, so that the processes that it starts are stopped and ended with it.
                self._process = subprocess.Popen(
                    variant.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env={**os.environ, **variant.environment},
                    start_new_session=True,
                    bufsize=0,
                )
        except OSError as problem:
            raise RivalFailed(f"{variant.name} cannot be started: {problem}") from None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run inside the block only."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop it until its next turn."""
        self._signal(signal.SIGSTOP)

    def wait_ready(self) -> None:
        """Wait until it has loaded its model; raises ``RivalFailed``."""
        reply = self._read(START_TIMEOUT_S)
        if not isinstance(reply, Ready):
            raise RivalFailed(f"{self.variant.name} began with {reply}")
        self.ready = reply

    def answer(self, job: Job) -> Answers:
        """Return the answers to ``job``; raises ``RivalFailed`` also when tokens are missing."""
        reply = self.ask(job)
        if not isinstance(reply, Answers):
            raise RivalFailed(f"{self.variant.name} replied {reply}")
        if [len(answer) for answer in reply.tokens] != [job.num_new_tokens] * len(job.prompts):
            raise RivalFailed(f"{self.variant.name} did not write {job.num_new_tokens} tokens for every prompt")
        return reply

    def load_ms(self, adapter: str) -> float:
        """Return how long loading ``adapter`` took."""
        reply = self.ask(Load(adapter))
        if not isinstance(reply, LoadTime):
            raise RivalFailed(f"{self.variant.name} replied {reply}")
        return reply.ms

    def ask(self, command: Command) -> Reply:
        """Return the reply to ``command``; raises ``RivalFailed`` when that is a failure."""
        self._write(command)
        reply = self._read(_REPLY_TIMEOUT_S)
        if isinstance(reply, Failed):
            raise RivalFailed(f"{self.variant.name}: {reply.reason}")
        return reply

    def close(self) -> None:
        """End it and everything it started."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(RivalFailed):
            self._write(Close())
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_TIMEOUT_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _write(self, command: Command) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
        except OSError:
            raise RivalFailed(f"{self.variant.name} ended: {self._last_words()}") from None

    def _read(self, timeout_s: float) -> Reply:
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise RivalFailed(f"{self.variant.name} said nothing for {timeout_s:.0f} s")
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise RivalFailed(f"{self.variant.name} ended: {self._last_words()}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        reply: Reply = decoding.json_decoder(Reply).decode(line)
        return reply

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def started(variant: Variant, log: Path) -> Iterator[Rival]:
    """Start a rival and wait until it is ready; it is ended when the block is left. Raises ``RivalFailed``."""
    rival = Rival(variant, log)
    try:
        rival.wait_ready()
        yield rival
    finally:
        rival.close()
