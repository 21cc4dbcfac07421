"""The loop of a rival's process. Its standard output carries replies only; what libraries print goes to stderr."""

import abc
import os
import sys
import time

import msgspec

from bench.drivers.messages import Answers, Close, Command, Failed, Job, Load, LoadTime, Measured, Profile, Ready, Reply


class Rival(abc.ABC):
    """What a driver does. ``prepare`` is not timed: whatever a server would have done before the requests came."""

    @abc.abstractmethod
    def describe(self) -> Ready:
        """Return versions and settings."""

    @abc.abstractmethod
    def prepare(self, job: Job) -> None:
        """Load the adapters that are not here yet."""

    @abc.abstractmethod
    def generate(self, job: Job) -> tuple[tuple[int, ...], ...]:
        """Answer all prompts at once and return their new tokens."""

    @abc.abstractmethod
    def load(self, adapter: str) -> float:
        """Load an adapter that is not here and return the milliseconds that took; it is gone afterwards."""

    def profile(self, command: Profile) -> Measured:
        """Measure what lies behind the throughput; for drivers that can."""
        raise NotImplementedError


def claim_output() -> int:
    """Return a file descriptor for replies and let everything else that is printed go to stderr. Call it first."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def serve(rival: Rival, output: int) -> None:
    """Say that ``rival`` is ready, then do one command after the other until ``Close`` or the end of stdin."""
    decoder = msgspec.json.Decoder(Command)

    def reply(message: Reply) -> None:
        os.write(output, msgspec.json.encode(message) + b"\n")

    reply(rival.describe())
    for line in sys.stdin.buffer:
        command = decoder.decode(line)
        if isinstance(command, Close):
            return
        try:
            reply(_do(rival, command))
        except Exception as problem:
            # The comparison decides what a failure means; a rival's error must not look like a hang.
            reply(Failed(f"{type(problem).__name__}: {problem}"))


def _do(rival: Rival, command: Job | Load | Profile) -> Reply:
    match command:
        case Job():
            rival.prepare(command)
            started = time.perf_counter()
            tokens = rival.generate(command)
            return Answers(time.perf_counter() - started, tokens)
        case Load():
            return LoadTime(rival.load(command.adapter))
        case Profile():
            return rival.profile(command)
