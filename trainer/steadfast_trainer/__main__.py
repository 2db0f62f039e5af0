"""One rank: `python -m steadfast_trainer`, under the agent, under torchrun, or alone.

Maps whatever happens to an exit code and a report, then leaves hard: after an error the collective library may hang
in its own clean-up, and a rank that hangs hides why it failed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from types import FrameType

import torch

from steadfast_contract.env import RankEnv
from steadfast_contract.exits import ExitCode, RankReport
from steadfast_contract.folder import pulse_path, report_path
from steadfast_trainer.checkpoint.fence import Fenced, RunInUse
from steadfast_trainer.checkpoint.load import CheckpointForeign, CheckpointUnreadable
from steadfast_trainer.checkpoint.save import CheckpointFailed
from steadfast_trainer.checkpoint.store import BucketMissing, StoreDenied, StoreError
from steadfast_trainer.config import ConfigError, rank_config
from steadfast_trainer.data.streams import DataError
from steadfast_trainer.parallel import CollectiveError
from steadfast_trainer.pulse import PulseWriter, write_report
from steadfast_trainer.train import NonFiniteLoss, train

# The first match decides; everything else is an error in training code.
EXIT_OF: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], ExitCode], ...] = (
    ((ConfigError, CheckpointForeign, RunInUse, Fenced, BucketMissing, StoreDenied), ExitCode.CONFIG),
    (DataError, ExitCode.DATA),
    (CheckpointUnreadable, ExitCode.CHECKPOINT_UNREADABLE),
    (NonFiniteLoss, ExitCode.NON_FINITE_LOSS),
    (CollectiveError, ExitCode.COLLECTIVE),
    ((StoreError, CheckpointFailed), ExitCode.STORAGE),
    (torch.AcceleratorError, ExitCode.GPU),
)


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code that tells the operator what to do about an error."""
    return next((code for kinds, code in EXIT_OF if isinstance(error, kinds)), ExitCode.USER_ERROR)


class _StopFlag:
    """Set by SIGTERM: save, then stop."""

    def __init__(self) -> None:
        self.set = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C in the terminal is the runtime's to translate

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.set = True


def run_rank() -> int:
    """Train as the environment says; return the exit code, the report is written."""
    stop = _StopFlag()
    env = RankEnv()
    folder = Path(os.environ.get("STEADFAST_FOLDER") or tempfile.mkdtemp(prefix="steadfast-"))
    step: int | None = None
    try:
        env = RankEnv.from_mapping(os.environ)
        pulse = PulseWriter(pulse_path(str(folder), local_rank=env.local_rank) if env.folder else None)
        config = rank_config(env)
        try:
            code = train(config, environ=os.environ, folder=folder, pulse=pulse, stopping=lambda: stop.set)
        finally:
            step = pulse.pulse.step
        message = ""
    except Exception as error:
        code = ExitCode.CONFIG if isinstance(error, ValueError) and env == RankEnv() else exit_code_of(error)
        message = "".join(traceback.format_exception(error)) if code == ExitCode.USER_ERROR else str(error)
        print(f"Rank {env.rank} failed: {message}", file=sys.stderr, flush=True)
    report = RankReport(code=code, attempt=env.attempt, rank=env.rank, step=step, message=message)
    if os.environ.get("STEADFAST_FOLDER"):  # known even where the rest of the environment is malformed
        write_report(report_path(str(folder), local_rank=env.local_rank), report)
    return code


def main() -> None:
    """Run one rank and leave without any clean-up."""
    code = run_rank()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
