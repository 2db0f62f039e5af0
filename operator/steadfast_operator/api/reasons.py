"""Every condition type and reason that a person can meet, in one place."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """Facts about a job that hold or do not hold."""

    ACCEPTED = "Accepted"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Why a decision was made; also the reason of conditions, attempt records and log lines."""

    # Where a job stands.
    INVALID_SPEC = "InvalidSpec"
    ACCEPTED = "Accepted"
    STARTING_WORKERS = "StartingWorkers"
    WAITING_FOR_WORKERS = "WaitingForWorkers"
    STOPPING_WORKERS = "StoppingWorkers"
    BACKING_OFF = "BackingOff"
    TRAINING = "Training"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    DELETING = "Deleting"
    # Why an attempt was begun.
    FIRST_START = "FirstStart"
    RESUMED = "Resumed"
    RESTARTED = "Restarted"
    WORKER_FAILED = "WorkerFailed"
    PREEMPTED = "Preempted"
    CONFIGURATION_CHANGED = "ConfigurationChanged"
    # How a job ended.
    COMPLETED = "Completed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    NOT_RETRYABLE = "NotRetryable"
    RESTART_BUDGET_SPENT = "RestartBudgetSpent"
    RESTART_STORM = "RestartStorm"
    NO_PROGRESS = "NoProgress"
