"""Counts and amounts written as Kubernetes quantities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_operator.api.quantities import excess, parse_count


@pytest.mark.parametrize(
    ("written", "count"),
    [
        (0, 0),
        (4096, 4096),
        ("4096", 4096),
        ("2k", 2_000),
        ("60M", 60_000_000),
        ("10G", 10**10),
        ("12T", 12 * 10**12),
        ("1.5M", 1_500_000),
        ("4Ki", 4096),
        ("1.5Ki", 1536),
        ("100Ti", 100 * 2**40),
    ],
)
def test_a_count_is_what_kubernetes_reads(written: object, count: int) -> None:
    assert parse_count(written) == count


@pytest.mark.parametrize(
    "written",
    [
        True,
        1.5,
        None,
        "",
        "12 T",
        "12X",
        "-5",
        "+5",
        "1e3",
        ".5M",
        "5.",
        "60m",
        "60MB",
        "K",
        "1K",
        "1,000",
        "1.5",
        "1.0001k",
    ],
)
def test_anything_else_is_refused_with_the_value(written: object) -> None:
    with pytest.raises(ValueError, match=r"no count|not a whole number") as refusal:
        parse_count(written)
    assert repr(written) in str(refusal.value)


@given(st.integers(min_value=0, max_value=10**18))
def test_a_number_survives_being_written(number: int) -> None:
    assert parse_count(str(number)) == parse_count(number) == number
    assert parse_count(f"{number}k") == number * 1000


@pytest.mark.parametrize(
    ("text", "over", "more"),
    [
        ("1", "500m", "500m"),
        ("500m", "1", ""),
        ("1000m", "1", ""),
        ("1Gi", "1G", "0.074G"),
        ("1G", "1Gi", ""),
        ("2Ti", "1800Gi", "248Gi"),
        ("1.5", "1", "0.5"),
        ("200", "192", "8"),
        ("1000001", "1000k", "0.001k"),
        ("1000.0001k", "1000k", "0.001k"),
        ("9" * 28 + "E", "1", "9" * 28 + "0" * 18),
    ],
)
def test_how_much_one_amount_is_above_another(text: str, over: str, more: str) -> None:
    assert excess(text, over=over) == more
