"""Who may publish to a run. Used by rank 0 only.

Claiming moves LATEST to our attempt by compare-and-set; from then on no older attempt can publish, whether it still
runs or not. A lease tells a second job that the first one lives.
"""

from __future__ import annotations

import secrets
import threading
import time
from dataclasses import replace

from steadfast_contract.checkpoints import LATEST, LEASE, Latest, Lease
from steadfast_trainer.checkpoint.load import CheckpointUnreadable
from steadfast_trainer.checkpoint.store import ObjectMissing, ObjectStore, PreconditionFailed, StoreError

LEASE_SECONDS = 2.0
"""Time between two renewals."""
WATCH_SECONDS = 7.0
"""A lease that does not move for so long is dead."""
POLL_SECONDS = 0.25


class Fenced(Exception):
    """Another attempt or job owns the run now: this gang must end."""


class RunInUse(Exception):
    """Another job that lives holds the run."""


class Fence:
    """The right to publish checkpoints of one run, held by one attempt."""

    def __init__(self, store: ObjectStore, latest: Latest, *, tag: str, job: str) -> None:
        self.latest = latest
        self._store, self._tag = store, tag
        self._in_doubt: Latest | None = None
        self._stopped = threading.Event()
        self._beats = threading.Thread(target=self._renew, args=(job,), name="lease", daemon=True)
        self._beats.start()

    @classmethod
    def claim(cls, store: ObjectStore, *, owner: str, job: str, attempt: int, resume: str) -> Fence:
        """Take over the run for this attempt.

        `attempt` 0 means: the one after the newest. With `resume` "never" a new owner starts a chain of its own.

        Raises:
            RunInUse: another job's lease moves.
            Fenced: a newer attempt of this job has claimed already.
            CheckpointUnreadable: LATEST is damaged.
        """
        while True:
            latest, tag = _fetch_latest(store)
            if latest is not None and latest.owner == owner:
                number = latest.attempt - latest.attempts_before
                if attempt and attempt <= number:
                    raise Fenced(f"attempt {attempt} of run {store.uri} is over: attempt {number} has claimed it")
            elif latest is not None and not latest.released:
                _watch_lease(store, latest.owner)
            claimed = _next_claim(latest, owner=owner, attempt=attempt, resume=resume)
            try:
                if latest is None:
                    tag = store.create(LATEST, claimed.to_json())
                else:
                    tag = store.replace(LATEST, claimed.to_json(), etag=tag)
            except PreconditionFailed:
                continue  # It moved while we looked: an older gang has published, or somebody else has claimed.
            return cls(store, claimed, tag=tag, job=job)

    def publish(self, *, step: int, manifest: str, deadline_seconds: float | None = None) -> None:
        """Make a checkpoint the newest.

        Raises:
            Fenced: the run is no longer ours.
        """
        newest = replace(self.latest, step=step, manifest=manifest, nonce=secrets.token_hex(8))
        self._move(newest, deadline_seconds=deadline_seconds)

    def release(self) -> None:
        """Say that this owner has stopped for good, so that another job need not wait.

        Raises:
            Fenced: the run is no longer ours.
        """
        self._stopped.set()
        self._beats.join()
        try:
            self._move(replace(self.latest, released=True, nonce=secrets.token_hex(8)))
        except StoreError as error:  # what was trained is durable: the next job only has to watch the lease
            print(f"Could not release the run: {error}", flush=True)

    def settle(self) -> None:
        """Learn whether a move whose reply was lost has happened after all."""
        if self._in_doubt is None:
            return
        now, tag = _fetch_latest(self._store)
        if now == self._in_doubt:
            self.latest, self._tag = now, tag
        self._in_doubt = None

    def _move(self, to: Latest, *, deadline_seconds: float | None = None) -> None:
        self.settle()
        self._in_doubt = to
        try:
            self._tag = self._store.replace(LATEST, to.to_json(), etag=self._tag, deadline_seconds=deadline_seconds)
        except PreconditionFailed as error:
            self._in_doubt = None
            now, _ = _fetch_latest(self._store)
            holder = f"attempt {now.attempt} of owner {now.owner} holds it" if now else "its LATEST was deleted"
            raise Fenced(f"attempt {self.latest.attempt} may not publish to {self._store.uri}: {holder}") from error
        self.latest, self._in_doubt = to, None

    def _renew(self, job: str) -> None:
        beat = 0
        while not self._stopped.wait(0 if beat == 0 else LEASE_SECONDS):
            beat += 1
            lease = Lease(owner=self.latest.owner, job=job, beat=beat)
            try:
                self._store.put(LEASE, lease.to_json(), deadline_seconds=LEASE_SECONDS)
            except StoreError:
                continue  # The lease only informs; the fence is LATEST.


def _fetch_latest(store: ObjectStore) -> tuple[Latest | None, str]:
    try:
        text, tag = store.get_tagged(LATEST)
    except ObjectMissing:
        return None, ""
    try:
        return Latest.from_json(text), tag
    except ValueError as error:
        raise CheckpointUnreadable(f"{store.uri}/{LATEST}: {error}") from error


def _next_claim(latest: Latest | None, *, owner: str, attempt: int, resume: str) -> Latest:
    nonce = secrets.token_hex(8)
    if latest is None:
        return Latest(owner=owner, attempt=max(1, attempt), nonce=nonce, step=0, manifest=None)
    before = latest.attempts_before if latest.owner == owner else latest.attempt
    fresh = resume == "never" and latest.owner != owner
    return Latest(
        owner=owner,
        attempt=before + attempt if attempt else latest.attempt + 1,
        nonce=nonce,
        step=0 if fresh else latest.step,
        manifest=None if fresh else latest.manifest,
        attempts_before=before,
    )


def _watch_lease(store: ObjectStore, owner: str) -> None:
    """Return when nobody renews the lease.

    Raises:
        RunInUse: somebody does.
    """
    beats = set()
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        # An owner that has only just claimed has no lease yet: keep watching.
        if (lease := _fetch_lease(store)) is not None and lease.owner == owner:
            beats.add(lease.beat)
            if len(beats) > 1:
                raise RunInUse(
                    f"run {store.uri} is in use by job {lease.job or lease.owner}: stop that job, "
                    "or give this one a runName of its own"
                )
        time.sleep(POLL_SECONDS)


def _fetch_lease(store: ObjectStore) -> Lease | None:
    try:
        return Lease.from_json(store.get(LEASE))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise CheckpointUnreadable(f"{store.uri}/{LEASE}: {error}") from error
