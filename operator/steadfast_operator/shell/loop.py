"""One task per job: look, decide, carry out, wait. It serves the operator and the local runtime alike.

Whoever learns that something about the job changed sets `wake`; nothing rests on that, because every decision says
when to look again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from steadfast_operator.api.reasons import Reason
from steadfast_operator.core.actions import Decision
from steadfast_operator.core.decide import decide
from steadfast_operator.core.observation import Limits, Observation
from steadfast_operator.core.status import is_finished
from steadfast_operator.shell.execute import execute
from steadfast_operator.shell.observe import observe
from steadfast_operator.shell.ports import Clock, Cluster, ConflictError

RETRY_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

OnDecision = Callable[[Observation, Decision], None]

_log = logging.getLogger(__name__)


async def run_job(
    cluster: Cluster,
    clock: Clock,
    *,
    wake: asyncio.Event,
    limits: Limits | None = None,
    on_decision: OnDecision | None = None,
    until_rest: bool = False,
) -> None:
    """Look after one job until it has ended and its workers are gone, or until it does not exist any more.

    With `until_rest` also until it is suspended, or refused, and nothing of it runs. Failing adapters are asked
    again for ever, ever more slowly. `on_decision` is called after each decision was carried out.
    """
    limits = limits or Limits()
    since = clock.now()
    failures, last_error, previous = 0, "", None
    while True:
        wake.clear()
        try:
            seen = await observe(cluster, clock, limits=limits, watched_since=since)
            if seen is None:
                return
            decision = decide(seen)
            await execute(cluster, seen.job, decision)
        except ConflictError:  # somebody changed the job while we looked at it: look again
            await clock.wait(asyncio.Event(), limits.poll_seconds)
            continue
        except Exception as error:  # one job's trouble, ours included, must not end the care for it
            last_error = _log_error(error, last_error)
            await clock.wait(asyncio.Event(), RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)])
            failures, previous = failures + 1, None
            continue
        failures, last_error = 0, ""
        _log_decision(seen, decision, previous)
        if on_decision is not None:
            on_decision(seen, decision)
        if _is_over(seen, decision, until_rest=until_rest):
            return
        await clock.wait(wake, _pause(decision, previous, limits))
        previous = decision


def _is_over(seen: Observation, decision: Decision, *, until_rest: bool) -> bool:
    if decision.actions:
        return False
    if until_rest and decision.reason in (Reason.SUSPENDED, Reason.INVALID_SPEC):
        return True
    ended = is_finished(seen.status) or seen.job.metadata.deletion_timestamp is not None
    return ended and decision.wake_after_seconds is None


def _pause(decision: Decision, previous: Decision | None, limits: Limits) -> float | None:
    """Look at once at what the actions did; but an action that changes nothing is not repeated without a breath."""
    if not decision.actions:
        return decision.wake_after_seconds
    if previous is None or previous.actions != decision.actions:
        return 0.0
    return limits.poll_seconds


def _log_error(error: Exception, last: str) -> str:
    text = f"{type(error).__name__}: {error}"
    if text != last:
        _log.warning("Failed to look after the job, retrying: error=%r", text, exc_info=error)
    return text


def _log_decision(seen: Observation, decision: Decision, previous: Decision | None) -> None:
    if previous is not None and previous.reason == decision.reason and not decision.actions:
        return
    meta = seen.job.metadata
    _log.info(
        "Decided: job=%s/%s attempt=%d reason=%s actions=%d message=%r",
        meta.namespace,
        meta.name,
        decision.status.attempt,
        decision.reason,
        len(decision.actions),
        decision.message,
    )
