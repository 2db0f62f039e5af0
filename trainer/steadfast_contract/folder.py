"""Names of the files that agent and ranks share in a worker's folder."""

from __future__ import annotations

from pathlib import Path


def pulse_path(folder: str, *, local_rank: int) -> Path:
    """Shared memory with a rank's progress."""
    return Path(folder) / f"pulse-{local_rank}"


def report_path(folder: str, *, local_rank: int) -> Path:
    """A rank's last words."""
    return Path(folder) / f"report-{local_rank}.json"


def termination_path(folder: str) -> Path:
    """The worker's termination message: the report of the rank that ended it."""
    return Path(folder) / "termination.json"


def agent_path(folder: str) -> Path:
    """Where the agent's HTTP server listens: `host:port`, written when it does."""
    return Path(folder) / "agent.address"


def cache_path(folder: str) -> Path:
    """Data shards of this worker; lost with it."""
    return Path(folder) / "cache"


def steps_path(folder: str) -> Path:
    """History of this attempt, written by rank 0: a `StepRecord` as JSON on each line."""
    return Path(folder) / "steps.jsonl"
