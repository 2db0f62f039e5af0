from __future__ import annotations

from bench.report import DOCUMENT, RESULTS, row, with_tables


def test_a_row_is_the_spread_of_one_figure() -> None:
    found = row("case", "system", [float(value) for value in range(20, 0, -1)])
    assert (found["n"], found["p50"], found["p95"], found["min"], found["max"]) == (20, 10.5, 19.0, 1.0, 20.0)


def test_the_95th_percentile_of_few_is_their_worst() -> None:
    assert row("case", "system", [3.0, 1.0, 2.0])["p95"] == 3.0


def test_what_was_never_finished_has_no_figures() -> None:
    found = row("case", "system", [], unfinished=5)
    assert (found["n"], found["p50"], found["unfinished"]) == (0, None, 5)


def test_the_document_has_the_numbers_of_the_stored_results() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text) == text, "run `python -m bench.report`"


def test_the_document_has_every_stored_result() -> None:
    text = DOCUMENT.read_text()
    assert [path.stem for path in RESULTS.glob("*.json") if f"<!-- {path.stem} -->" not in text] == []
