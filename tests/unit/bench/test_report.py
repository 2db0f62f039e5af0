from __future__ import annotations

from bench.report import row


def test_a_row_is_the_spread_of_one_figure() -> None:
    found = row("case", "system", [float(value) for value in range(20, 0, -1)])
    assert (found["n"], found["p50"], found["p95"], found["min"], found["max"]) == (20, 10.5, 19.0, 1.0, 20.0)


def test_the_95th_percentile_of_few_is_their_worst() -> None:
    assert row("case", "system", [3.0, 1.0, 2.0])["p95"] == 3.0


def test_what_was_never_finished_has_no_figures() -> None:
    found = row("case", "system", [], unfinished=5)
    assert (found["n"], found["p50"], found["unfinished"]) == (0, None, 5)
