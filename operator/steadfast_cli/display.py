"""What a person sees while a local run goes on: a live line on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from steadfast_cli.summary import Summary
from steadfast_contract.heartbeat import Phase, Pulse

PLAIN_SECONDS = 10.0
"""Time between two progress lines where there is no terminal."""


class Display:
    """Shows one run; everything goes to one console."""

    def __init__(self, console: Console, *, job: str, steps: int) -> None:
        self._console, self._job, self._steps = console, job, steps
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._started = time.monotonic()
        self._plain_at = 0.0

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str, *, style: str = "") -> None:
        """One line that stays."""
        elapsed = timedelta(seconds=round(time.monotonic() - self._started))
        self._console.print(Text(f"{elapsed}  ", style="dim") + Text(text, style=style), soft_wrap=True)

    def progress(self, pulse: Pulse | None, *, state: str, restarts: int) -> None:
        """The newest progress."""
        if self._live is not None:
            self._live.update(self._line(pulse, state=state, restarts=restarts), refresh=True)
        elif pulse is not None and pulse.step > 0 and time.monotonic() - self._plain_at >= PLAIN_SECONDS:
            self._plain_at = time.monotonic()
            self.say(_progress_text(pulse, steps=self._steps, restarts=restarts))

    def _line(self, pulse: Pulse | None, *, state: str, restarts: int) -> Table:
        line = Table.grid(padding=(0, 1))
        step = max(0, pulse.step) if pulse else 0
        text = _progress_text(pulse, steps=self._steps, restarts=restarts) if pulse and step else state
        line.add_row(
            Text(self._job, style="bold"), ProgressBar(total=self._steps, completed=step, width=24), Text(text)
        )
        return line


def _progress_text(pulse: Pulse, *, steps: int, restarts: int) -> str:
    parts = [f"step {pulse.step}/{steps}"]
    if pulse.phase == Phase.TRAINING and pulse.first_step_at:
        parts += [f"loss {pulse.loss:.3f}", f"{pulse.tokens_per_second:,.0f} tokens/s"]
        seconds_per_step = pulse.tokens / max(1, pulse.step) / max(1.0, pulse.tokens_per_second)
        parts.append(f"ETA {timedelta(seconds=round((steps - pulse.step) * seconds_per_step))}")
    else:
        parts.append(Phase(pulse.phase).name.lower())
    if pulse.committed > 0:
        parts.append(f"checkpoint {pulse.committed}")
    parts.append(f"restarts {restarts}")
    return "  ".join(parts)


def summary_table(summary: Summary) -> Table:
    """The closing table."""
    table = Table(title="Run summary", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("state", summary.state)
    table.add_row("steps", str(summary.steps))
    table.add_row("first loss", _number(summary.first_loss, 3))
    table.add_row("final loss (mean of last 10 steps)", _number(summary.final_loss, 3))
    table.add_row("tokens per second", _number(summary.tokens_per_second, 0))
    table.add_row("restarts", str(summary.restarts))
    for number, cost in enumerate(summary.failures, start=1):
        table.add_row(f"  {number}. failure", cost.failure)
        table.add_row("     detection, seconds", _number(cost.detection_seconds, 2))
        table.add_row("     recovery to first new step, seconds", _number(cost.recovery_seconds, 2))
        table.add_row("     lost steps", str(cost.lost_steps))
    table.add_row("lost steps", str(sum(cost.lost_steps for cost in summary.failures)))
    table.add_row("wall seconds", _number(summary.wall_seconds, 1))
    table.add_row("ETTR (start-up included)", "-" if summary.ettr is None else f"{summary.ettr:.1%}")
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"
