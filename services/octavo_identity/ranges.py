"""Sets of revision numbers as sorted ranges, both ends included: small however many they hold. Pure."""

Ranges = tuple[tuple[int, int], ...]


def contains(ranges: Ranges, number: int) -> bool:
    """Tell whether ``number`` lies in one of ``ranges``."""
    return any(first <= number <= last for first, last in ranges)


def added(ranges: Ranges, number: int) -> Ranges:
    """Return ``ranges`` with ``number``; neighbours become one range."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted((*ranges, (number, number))):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)
