"""The environment of an agent and of a rank, both directions. Callers pass `os.environ`; nothing here reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class WorkerEnv:
    """What the operator tells a worker at its creation."""

    job: str
    """`<namespace>/<name>`."""
    job_uid: str
    worker: str
    attempt: int
    node_rank: int
    num_workers: int
    ranks_per_worker: int
    master: str = ""
    """`host:port` of node rank 0; empty for node rank 0 itself, which chooses it."""
    training: str = ""
    """`TrainingConfig` as JSON."""
    folder: str = "/run/steadfast"
    """Where reports, pulses and the shard cache live; ends with the worker."""
    host: str = "0.0.0.0"
    """Address that the agent's HTTP server and the rendezvous listen on."""
    port: int = 9400
    """Port of the agent's HTTP server; 0 takes a free one."""
    master_port: int = 29500
    """Port that node rank 0 listens on for the rendezvous; 0 takes a free one."""

    def to_mapping(self) -> dict[str, str]:
        """As environment variables."""
        return {name: str(getattr(self, key)) for key, name in _WORKER_NAMES.items()}

    @classmethod
    def from_mapping(cls, env: Mapping[str, str]) -> WorkerEnv:
        """Read the environment of an agent.

        Raises:
            ValueError: a variable is missing or is not the number it should be; the message names it.
        """
        missing = [name for name in _WORKER_NAMES.values() if name not in env]
        if missing:
            raise ValueError(f"environment variables missing: {', '.join(missing)}")
        values: dict[str, str | int] = {}
        for key, name in _WORKER_NAMES.items():
            values[key] = _integer(name, env[name]) if key in _INTEGERS else env[name]
        return cls(**values)  # type: ignore[arg-type]


_WORKER_NAMES = {
    "job": "STEADFAST_JOB",
    "job_uid": "STEADFAST_JOB_UID",
    "worker": "STEADFAST_WORKER",
    "attempt": "STEADFAST_ATTEMPT",
    "node_rank": "STEADFAST_NODE_RANK",
    "num_workers": "STEADFAST_NUM_WORKERS",
    "ranks_per_worker": "STEADFAST_RANKS_PER_WORKER",
    "master": "STEADFAST_MASTER",
    "training": "STEADFAST_TRAINING",
    "folder": "STEADFAST_FOLDER",
    "host": "STEADFAST_HOST",
    "port": "STEADFAST_PORT",
    "master_port": "STEADFAST_MASTER_PORT",
}
_INTEGERS = {"attempt", "node_rank", "num_workers", "ranks_per_worker", "port", "master_port"}


@dataclass(frozen=True, kw_only=True)
class RankEnv:
    """What a rank is told: torchrun's names, plus ours. Every field has the value of a program run alone."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    """0: this process is the whole world, nobody connects."""
    training: str = ""
    job: str = ""
    """`<namespace>/<name>`, for messages; empty under torchrun or alone."""
    job_uid: str = ""
    """Owner of the run; empty under torchrun or alone, where each launch is an owner of its own."""
    attempt: int = 0
    """0: not told; the rank takes the number after the newest one in the bucket."""
    folder: str = ""
    """Where report, pulse and shard cache go; empty: a temporary folder, no report, no pulse."""
    master_listen_fd: int = -1
    """A listening socket for the rendezvous, handed over by the agent; -1: none."""

    def to_mapping(self) -> dict[str, str]:
        """As environment variables."""
        return {name: str(getattr(self, key)) for key, name in _RANK_NAMES.items()}

    @classmethod
    def from_mapping(cls, env: Mapping[str, str]) -> RankEnv:
        """Read the environment of a rank; what is not set keeps its default.

        Raises:
            ValueError: a variable that should be a number is none; the message names it.
        """
        values: dict[str, str | int] = {}
        for key, name in _RANK_NAMES.items():
            if name in env:
                default = getattr(cls, key)
                values[key] = _integer(name, env[name]) if isinstance(default, int) else env[name]
        return cls(**values)  # type: ignore[arg-type]


_RANK_NAMES = {
    "rank": "RANK",
    "local_rank": "LOCAL_RANK",
    "world_size": "WORLD_SIZE",
    "local_world_size": "LOCAL_WORLD_SIZE",
    "master_addr": "MASTER_ADDR",
    "master_port": "MASTER_PORT",
    "training": "STEADFAST_TRAINING",
    "job": "STEADFAST_JOB",
    "job_uid": "STEADFAST_JOB_UID",
    "attempt": "STEADFAST_ATTEMPT",
    "folder": "STEADFAST_FOLDER",
    "master_listen_fd": "STEADFAST_MASTER_LISTEN_FD",
}


def _integer(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"environment variable {name}={text!r} is not an integer") from None
