"""Kubernetes quantities: counts (12T tokens, 60M per step) and amounts of a resource (500m, 1400Gi)."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18} | {
    f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", start=1)
}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)([A-Za-z]*)")


def parse_count(value: object) -> int:
    """A whole number from an integer or a quantity string.

    Raises:
        ValueError: the value is neither, or not whole.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no count: write a whole number, or a quantity such as 60M or 12T")
    if isinstance(value, int):
        return value
    match = _QUANTITY.fullmatch(value)
    if not match or match[2] not in _SUFFIXES:
        raise ValueError(f"{value!r} is no count: write a whole number, or a quantity such as 4096, 60M, 10G, 12T, 4Ki")
    count = Decimal(match[1]) * _SUFFIXES[match[2]]
    if count != count.to_integral_value():
        raise ValueError(f"{value!r} is {count}, not a whole number")
    return int(count)


def parse_resource(value: object) -> str:
    """A positive amount of a resource, as text.

    Raises:
        ValueError: the value is no such amount.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is no amount: write a quantity such as 96, 500m or 1400Gi")
    match = _QUANTITY.fullmatch(str(value))
    if not match or match[2] not in (*_SUFFIXES, "m") or not Decimal(match[1]):
        raise ValueError(f"{value!r} is no amount: write a positive quantity such as 96, 500m or 1400Gi")
    return str(value)


def excess(text: str, *, over: str) -> str:
    """How much one amount of a resource is above another, in the other's unit (248Gi); empty when it is not.

    Raises:
        ValueError: one of them is no amount.
    """
    (amount, unit), (ceiling, ceiling_unit) = _parts(text), _parts(over)
    left = amount * _unit(unit) / _unit(ceiling_unit) - ceiling
    if left <= 0:
        return ""
    return f"{max(left, Decimal('0.001')):.3f}".rstrip("0").rstrip(".") + ceiling_unit


def _parts(text: str) -> tuple[Decimal, str]:
    match = _QUANTITY.fullmatch(parse_resource(text))
    assert match is not None
    return Decimal(match[1]), match[2]


def _unit(suffix: str) -> Decimal:
    return Decimal("0.001") if suffix == "m" else Decimal(_SUFFIXES[suffix])
