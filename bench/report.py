"""How every benchmark ends: a JSON line on standard output, the same in `bench/results/`, a table in the document.

`python -m bench.report` writes the tables anew from what is committed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def row(case: str, system: str, values: Sequence[float], *, unit: str = "s", **extra: Any) -> dict[str, Any]:
    """One line of a result: the spread of one figure; no figures where nothing was measured."""
    ordered = sorted(values)
    if not ordered:
        return {"case": case, "system": system, "unit": unit, "n": 0, "p50": None, "p95": None, **extra}
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "case": case,
        "system": system,
        "unit": unit,
        "n": len(ordered),
        "p50": round(statistics.median(ordered), 3),
        "p95": round(p95, 3),
        "min": round(ordered[0], 3),
        "max": round(ordered[-1], 3),
        **extra,
    }


def publish(bench: str, rows: list[dict[str, Any]], *, note: str = "") -> None:
    """Store and print a result; the note joins the description of the machine."""
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}"
    result = {
        "bench": bench,
        "rows": rows,
        "machine": f"{machine}, {note}" if note else machine,
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{bench}.json").write_text(json.dumps(result, indent=1) + "\n")
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
    print(json.dumps(result))


def with_tables(document: str) -> str:
    """The document, with the stored results between its marks `<!-- NAME -->` and `<!-- end -->`."""
    mark = re.compile(r"(<!-- ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return mark.sub(lambda found: found[1] + table(found[2]) + found[3], document)


def table(bench: str) -> str:
    """A stored result for people; nothing when there is none."""
    path = RESULTS / f"{bench}.json"
    if not path.exists():
        return ""
    result = json.loads(path.read_text())
    lines = [f"{result['date'][:10]}, commit {result['commit']}; {result['machine']}. Seconds.", ""]
    lines += ["| case | system | n | p50 | p95 | max |", "| --- | --- | --- | --- | --- | --- |"]
    for each in result["rows"]:
        figures = ["-" if each.get(name) is None else f"{each[name]:.2f}" for name in ("p50", "p95", "max")]
        lines.append(f"| {each['case']} | {each['system']} | {each['n']} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
