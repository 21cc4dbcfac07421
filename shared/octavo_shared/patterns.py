"""Patterns from users: what they may hold, and how long all those of one adapter may take.

PEFT matches them with ``re``, which knows no time-out; ``regex`` does. A test holds both against each other.
"""

import re
import time

import regex

from octavo_shared.errors import AdapterRefused

_BUDGET_S = 0.12
_PATTERN_LENGTH_MAX = 1_024
_REPEATS_MAX = 1_000
_GROUPS_MAX = 32
_EXPANDED_MAX = 20_000
"""Places in all patterns of an adapter when counted repeats are unrolled, as regex does, at up to 1 kB each."""

WHOLE = "{}"
TAIL = r"(.*\.)?({})$"
"""PEFT lets a key of ``rank_pattern`` or ``alpha_pattern`` match the end of a module's name."""
LAYER = r"(?:^|.*?\.){}\.(?P<index>\d+)\."

_NAME = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\\.)+\Z")
_TOKEN = re.compile(
    r"""(?P<open> \( (?: \? (?: : | = | ! | <= | <! | > | i: ) )? (?! \? ) )
    | (?P<close> \) )
    | (?P<count> \{ (?: (?P<least>\d+) (?: , (?P<most>\d*) )? | , (?P<at_most>\d+) ) \} )
    | \( \? i \)
    | \\ [dDsSwWbAZ !-/:-@\[-`{-~]
    | \[ \^? (?: [ -%'-,.-Z^-{}] | - (?!-) | \\ [dDsSwW !-/:-@\[-`{-~] )+ \]
    | [ -'*-Z^-z|~]
    """,
    re.VERBOSE | re.ASCII,
)


class _Name:
    """A pattern with no operator but ``.``, as a module's name is: adapters may hold thousands, so none is compiled."""

    __slots__ = ("_any", "_ending", "_is_whole", "_text")

    def __init__(self, pattern: str) -> None:
        self._is_whole = pattern.startswith("^")
        parts = pattern.removeprefix("^").split("\\.")
        self._text = ".".join(parts)
        # Where a dot stands for any character, and what every name that matches ends with.
        dots, position = [], 0
        for part in parts:
            dots += [position + index for index, character in enumerate(part) if character == "."]
            position += len(part) + 1
        self._any = tuple(dots)
        self._ending = self._text[dots[-1] + 1 :] if dots else self._text

    def matches(self, name: str, *, is_tail: bool) -> bool:
        if not name.endswith(self._ending):
            return False
        begin = len(name) - len(self._text)
        if begin and (not is_tail or self._is_whole or begin < 0 or name[begin - 1] != "."):
            return False
        tail = name[begin:]
        if tail == self._text:
            return True
        same = list(self._text)
        for index in self._any:
            same[index] = tail[index]
        return "".join(same) == tail


class Matcher:
    """Compiles and matches the patterns of one adapter, which together may take ``budget_s`` seconds of this thread.

    A hostile pattern is refused (``AdapterRefused``, rule ``pattern``), not waited for. Seconds are those that the
    thread computes: a machine that is busy with other things refuses nobody.
    """

    def __init__(self, budget_s: float = _BUDGET_S) -> None:
        self._left_s = budget_s
        self._num_expanded = 0
        self._compiled: dict[tuple[str, str], regex.Pattern[str] | _Name] = {}
        self._listed: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {}

    def compile(self, pattern: str, form: str, field: str) -> None:
        """Refuse ``pattern`` if it is none, or takes too much to compile as ``form`` embeds it."""
        self._compile(pattern, form, field)

    def is_listed(self, names: tuple[str, ...], module: str, field: str) -> bool:
        """Tell whether ``module``, or what follows one of its dots, is one of ``names``, the list of ``field``."""
        kept = self._listed.get(field)
        if kept is None or kept[0] is not names:
            kept = self._listed[field] = (names, frozenset(names))
        rest = module
        while rest not in kept[1]:
            _, dot, rest = rest.partition(".")
            if not dot:
                return False
        return True

    def matches(self, pattern: str, form: str, module: str, field: str) -> bool:
        """Tell whether ``pattern`` matches the name ``module``: the whole of it, or as ``form`` says."""
        compiled = self._compiled.get((pattern, form)) or self._compile(pattern, form, field)
        if isinstance(compiled, _Name):
            return compiled.matches(module, is_tail=form == TAIL)
        return self._search(compiled, form, module, field) is not None

    def layer_of(self, pattern: str, module: str, field: str) -> regex.Match[str] | None:
        """Return how ``pattern`` comes to the number of a layer in ``module``, the group ``index``."""
        compiled = self._compile(pattern, LAYER, field)
        assert not isinstance(compiled, _Name)
        return self._search(compiled, LAYER, module, field)

    def _search(self, compiled: regex.Pattern[str], form: str, module: str, field: str) -> regex.Match[str] | None:
        if self._left_s <= 0:
            raise _too_slow(field)
        match = compiled.fullmatch if form == WHOLE else compiled.match
        begin_s = time.thread_time()
        try:
            return match(module, timeout=self._left_s)
        except TimeoutError:
            raise _too_slow(field) from None
        finally:
            self._left_s -= time.thread_time() - begin_s

    def _compile(self, pattern: str, form: str, field: str) -> regex.Pattern[str] | _Name:
        if self._left_s <= 0:
            raise _too_slow(field)
        if (kept := self._compiled.get((pattern, form))) is not None:
            return kept
        if len(pattern) > _PATTERN_LENGTH_MAX:
            raise AdapterRefused("pattern", f"a pattern in {field} is longer than {_PATTERN_LENGTH_MAX} characters")
        if form != LAYER and _NAME.match(pattern):
            name = self._compiled[pattern, form] = _Name(pattern)
            return name
        begin_s = time.thread_time()
        self._num_expanded += _num_expanded(pattern, field)
        if self._num_expanded > _EXPANDED_MAX:
            raise AdapterRefused("pattern", f"the patterns in {field} repeat too much")
        try:
            # PEFT's engine has the first word on what is a pattern, also without what is put around it here.
            re.compile(pattern)
            re.compile(form.format(pattern))
            compiled = regex.compile(form.format(pattern), cache_pattern=False)
        except (re.error, regex.error, RecursionError, OverflowError) as problem:
            raise AdapterRefused("pattern", f"a pattern in {field} is no regular expression: {problem}") from None
        self._compiled[pattern, form] = compiled
        # Only time that is spent here counts: between two matches a large file may be read.
        self._left_s -= time.thread_time() - begin_s
        return compiled


def _too_slow(field: str) -> AdapterRefused:
    return AdapterRefused("pattern", f"the patterns in {field} take too long to match")


def _num_expanded(pattern: str, field: str) -> int:
    """Return how many places ``pattern`` has with its counted repeats unrolled; raises ``AdapterRefused``.

    Only syntax that means the same to ``re`` and to ``regex`` gets through: ``regex`` has much that ``re`` reads
    literally (``a{e<=3}``) or not at all. Names of modules need no more, and they are ASCII.
    """
    # (places, product of nested repeats) of the groups that are open, innermost last, and of the latest item.
    groups, item = [(0, 1)], (0, 1)
    position = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None or len(groups) > _GROUPS_MAX:
            raise AdapterRefused("pattern", f"{pattern[position : position + 8]!r} in {field} is not served")
        position = token.end()
        if token["open"]:
            groups.append((0, 1))
            continue
        if token["count"]:
            times = max(1, *(int(token[part] or 0) for part in ("least", "most", "at_most")))
            item = (item[0] * (times - 1), item[1] * times)
            if item[1] > _REPEATS_MAX:
                raise AdapterRefused("pattern", f"a pattern in {field} repeats a part more than {_REPEATS_MAX} times")
        elif token["close"]:
            if len(groups) == 1:
                raise AdapterRefused("pattern", f"a pattern in {field} closes a group that is not open")
            item = groups.pop()
        else:
            item = (1, 1)
        groups[-1] = (groups[-1][0] + item[0], max(groups[-1][1], item[1]))
    return groups[0][0]
