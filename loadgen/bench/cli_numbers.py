"""Numbers on a command line that must make sense: refused in one line, before anything is started."""

import argparse
import math


def positive(text: str) -> int:
    """Return the whole number, 1 or more, that ``text`` is; raises ``ArgumentTypeError``."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return value


def seconds(text: str) -> float:
    """Return the time, above 0, that ``text`` is; raises ``ArgumentTypeError``."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return value
