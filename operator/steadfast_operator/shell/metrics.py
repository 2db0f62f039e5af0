"""What the operator tells Prometheus. Fed by the decisions alone; `jobs.py` calls it after each."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from steadfast_operator.api.reasons import ConditionType, Reason
from steadfast_operator.core import attempts
from steadfast_operator.core.actions import Decision
from steadfast_operator.core.observation import Observation
from steadfast_operator.core.status import holds

RECOVERY_BUCKETS = (0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """Counters and gauges of one operator."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._jobs = Gauge("steadfast_jobs", "Jobs by their state", ["state"], registry=registry)
        self._decisions = Counter("steadfast_decisions", "Decisions by their reason", ["reason"], registry=registry)
        text = "Restarts by the class of the failure, since this operator started"
        self._restarts = Counter("steadfast_restarts", text, ["training_job", "class"], registry=registry)
        self._gauges = {
            name: Gauge(f"steadfast_job_{name}", text, ["training_job"], registry=registry)
            for name, text in _PROGRESS.items()
        }
        text = "From the end of an attempt that was cut short to the first step of the next one"
        self._recovery = Histogram("steadfast_recovery_seconds", text, [], registry=registry, buckets=RECOVERY_BUCKETS)
        self._states: dict[str, str] = {}

    def note(self, seen: Observation, decision: Decision) -> None:
        """Count one decision that was carried out."""
        job = f"{seen.job.metadata.namespace}/{seen.job.metadata.name}"
        self._decisions.labels(decision.reason).inc()
        for failure_class, count in decision.status.restarts.by_class.items():
            self._restarts.labels(job, failure_class).inc(count - seen.status.restarts.by_class.get(failure_class, 0))
        self._note_state(job, decision.status.state)
        if (progress := decision.status.progress) is not None:
            for name, gauge in self._gauges.items():
                if (value := getattr(progress, name)) is not None:
                    gauge.labels(job).set(value)
        if (seconds := recovery_seconds(seen, decision)) is not None:
            self._recovery.observe(seconds)

    def forget(self, job: str) -> None:
        """The job is gone: its series end."""
        self._note_state(job, "")
        for gauge in self._gauges.values():
            gauge.remove_by_labels({"training_job": job})
        self._restarts.remove_by_labels({"training_job": job})

    def to_text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self.registry)

    def _note_state(self, job: str, state: str) -> None:
        before = self._states.pop(job, "")
        if state:
            self._states[job] = state
        for each in {before, state} - {""}:
            self._jobs.labels(each).set(sum(one == each for one in self._states.values()))


_PROGRESS = {
    "step": "Newest finished step",
    "loss": "Loss of the newest step, in nats per token",
    "tokens_per_second": "Tokens per second of the whole job",
}


def recovery_seconds(seen: Observation, decision: Decision) -> float | None:
    """How long the way back took, at the first decision that finds a gang training again."""
    if decision.reason != Reason.TRAINING or holds(seen.status, ConditionType.RUNNING):
        return None
    last = next((a for a in seen.status.attempts if a.number == seen.status.attempt - 1), None)
    if last is None or last.ended is None or last.outcome not in attempts.RESTARTS:
        return None
    return (seen.now - last.ended).total_seconds()
