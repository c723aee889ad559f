"""Values out of results.json, and their texts for people: one number, one line, or a dash where there is nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
# Shown as they are: joiners within emoji and words, and the letters that flags are spelt with.
_JOINERS = {"\u200c", "\u200d", *map(chr, range(0xE0020, 0xE0080))}
# Without any look of their own: left out.
_INVISIBLE = {"\u00ad", "\u200b", "\u200e", "\u200f", "\u2060", "\ufeff"}


def clean(value: object) -> str:
    """``value`` as one line of printable text, nothing for None: no control or direction-changing character passes."""
    return "" if value is None else "".join(map(_shown, str(value)))


def _shown(c: str) -> str:
    if c.isprintable() or c in _JOINERS:
        return c
    return "" if c in _INVISIBLE else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}"


def number(value: object) -> float | None:
    """A finite number, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def decimals(value: object, digits: int = 3, sign: bool = False) -> str:
    """``value`` with a fixed count of decimals, or a dash."""
    found = number(value)
    if found is None:
        return MISSING
    return f"{found:{'+' if sign else ''}.{digits}f}"


def count(value: object) -> str:
    """A whole number with thousands apart, or a dash."""
    found = number(value)
    return MISSING if found is None else f"{found:,.0f}"


def percent(value: object) -> str:
    """A share as percent with one decimal, or a dash."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:.1f} %"


def whole_percent(value: object) -> str:
    """A round share as percent, with as few digits as tell it, or a dash."""
    found = number(value)
    return MISSING if found is None else f"{100 * found:g} %"


def rate(value: object) -> str:
    """A speed: whole from 100 on, with one decimal below."""
    found = number(value)
    return count(found) if found is None or found >= 100 else decimals(found, 1)


def probability(value: object) -> str:
    """A p value with three decimals, or that it is below what they can show."""
    found = number(value)
    return MISSING if found is None else "< 0.001" if found < 0.001 else f"{found:.3f}"


def dig(tree: object, *keys: str) -> Any:
    """The value under ``keys``, or None as soon as one is missing."""
    for key in keys:
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def branch(tree: object, *keys: str) -> Mapping[str, Any]:
    """The mapping under ``keys``, or an empty one."""
    found = dig(tree, *keys)
    return found if isinstance(found, Mapping) else {}


def in_order(names: Iterable[str], order: tuple[str, ...]) -> list[str]:
    """``names`` without repeats: those of ``order`` first, the rest as they come."""
    found = list(dict.fromkeys(names))
    return [name for name in dict.fromkeys(order) if name in found] + [name for name in found if name not in order]


def items(value: object) -> list[Mapping[str, Any]]:
    """The mappings of a list, or an empty list."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def listed(names: list[str], most: int = 12) -> str:
    """Names with commas, the rest counted."""
    shown = ", ".join(clean(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def described(value: object) -> str:
    """A mapping or list of plain values as one line of text."""
    if isinstance(value, Mapping):
        nested = {key: f"({described(v)})" if isinstance(v, Mapping) else described(v) for key, v in value.items()}
        return ", ".join(f"{clean(key).replace('_', ' ')} {entry}" for key, entry in nested.items() if entry)
    if isinstance(value, (list, tuple)):
        return ", ".join(described(entry) for entry in value)
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else clean(value)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its bounds, which may be unknown; ``joint``: the lower bound that holds for all rows at once."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    joint: float | None = None

    @classmethod
    def of(cls, entry: object, value: str = "value") -> Interval:
        """The interval in an entry of results.json, whose estimate may have another name."""
        return cls(*(number(dig(entry, key)) for key in (value, "low", "high", "simultaneous_low")))

    def text(self, sign: bool = False, mark: str = "") -> str:
        """``0.989 [0.975, 1.002]``; without known bounds only the estimate."""
        if self.value is None or self.low is None or self.high is None:
            return decimals(self.value, sign=sign)
        low, high = decimals(self.low, sign=sign), decimals(self.high, sign=sign)
        return f"{decimals(self.value, sign=sign)} [{low}, {high}]{mark}"

    def side(self, of: float) -> int | None:
        """-1 or 1 where the whole interval lies below or above ``of``, 0 where it holds it, None if unknown."""
        if self.low is None or self.high is None:
            return None
        return -1 if self.high < of else 1 if self.low > of else 0
