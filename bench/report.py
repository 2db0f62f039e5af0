"""How every benchmark ends: one JSON line on standard output, and the same in `bench/results/NAME.json`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


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
    print(json.dumps(result))


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
