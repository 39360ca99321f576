"""Words for numbers, and plain tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["Rows", "amount", "duration", "printable", "rows", "size", "table"]

Rows = list[tuple[str, str]]


def duration(seconds: float) -> str:
    """45 s, 3 min, 2.5 h, 4 days."""
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.95 * unit or (unit < 86400 and seconds >= unit):
            return f"{seconds / unit:.{0 if seconds >= 9.5 * unit else 1}f} {name}".replace(".0 ", " ")
    return f"{seconds:.0f} s" if seconds >= 0.95 else "under a second"


def size(count: float) -> str:
    """Bytes in decimal units: 1.4 GB."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.{0 if count >= 99.5 * unit else 1}f} {name}"
    return f"{count:.0f} bytes"


def amount(count: int, noun: str) -> str:
    """1,797 pictures; 1 picture; 10 classes."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def printable(text: str) -> str:
    """The text on one line, without what a terminal would obey."""
    if text.isprintable():
        return text
    from sfumato.data.options import escape  # brings torch: not for `sfumato papers`

    return escape(text)


def table(cells: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell, two spaces apart."""
    lines = [[printable(cell) for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in lines)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def rows(pairs: Iterable[tuple[str, str]], indent: str = "  ") -> str:
    """Names and values, one a line; a value of several lines is indented under itself. What is not printable is
    escaped."""
    lines = [(printable(name), [printable(line) for line in value.splitlines()]) for name, value in pairs]
    wide = max((len(name) for name, _ in lines), default=0)
    gap = "\n" + indent + " " * (wide + 2)
    return "\n".join(f"{indent}{name:{wide}}  {gap.join(value)}".rstrip() for name, value in lines)
