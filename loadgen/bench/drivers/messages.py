"""What the comparison and a rival's process say to each other: one JSON object per line, one reply per command."""

import msgspec


class Job(msgspec.Struct, frozen=True, tag="job"):
    """Answer all prompts at once, greedily, with ``num_new_tokens`` tokens each, whatever the end-of-text token says.

    ``adapters[i]`` is the PEFT directory that prompt i uses, or None for the base alone. Replied to with ``Answers``.
    """

    prompts: tuple[tuple[int, ...], ...]
    adapters: tuple[str | None, ...]
    num_new_tokens: int


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Load one PEFT directory that no job used, then let it go. Replied to with ``LoadTime``."""

    adapter: str


class Profile(msgspec.Struct, frozen=True, tag="profile"):
    """Measure what only our own driver can see: decode steps, floors, ceilings. Replied to with ``Measured``.

    ``spare`` are directories that no job used.
    """

    base: Job
    mixed: Job
    spare: tuple[str, ...]
    num_rounds: int
    seed: int


class Close(msgspec.Struct, frozen=True, tag="close"):
    """Stop. No reply."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The first line of a driver: what it runs and how it was set."""

    versions: dict[str, str]
    settings: dict[str, str]


class Answers(msgspec.Struct, frozen=True, tag="answers"):
    """Seconds from the first prompt's hand-over to the last token, and every prompt's new tokens."""

    seconds: float
    tokens: tuple[tuple[int, ...], ...]


class LoadTime(msgspec.Struct, frozen=True, tag="load_time"):
    """How long a load took."""

    ms: float


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """Values of each measurement, one per round."""

    values: dict[str, tuple[float, ...]]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The command could not be done."""

    reason: str


Command = Job | Load | Profile | Close
Reply = Ready | Answers | LoadTime | Measured | Failed
