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
from steadfast_trainer.checkpoint.store import ObjectMissing, ObjectStore, PreconditionFailed, StoreError

LEASE_SECONDS = 2.0
"""Time between two renewals."""
WATCH_SECONDS = 7.0
"""A lease that does not move for so long is dead."""


class Fenced(Exception):
    """Another attempt or job owns the run now: this gang must end."""


class RunInUse(Exception):
    """Another job that lives holds the run."""


class Fence:
    """The right to publish checkpoints of one run, held by one attempt."""

    def __init__(self, store: ObjectStore, latest: Latest, *, tag: str, job: str) -> None:
        self.latest = latest
        self._store, self._tag = store, tag
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
        """
        nonce = secrets.token_hex(8)
        try:
            text, tag = store.get_tagged(LATEST)
        except ObjectMissing:
            first = Latest(owner=owner, attempt=max(1, attempt), nonce=nonce, step=0, manifest=None)
            try:
                return cls(store, first, tag=store.create(LATEST, first.to_json()), job=job)
            except PreconditionFailed as error:
                raise RunInUse(f"run {store.uri} was claimed by somebody else this very moment: {error}") from error
        latest = Latest.from_json(text)
        if latest.owner == owner:
            if attempt and attempt <= latest.attempt:
                raise Fenced(f"attempt {attempt} of run {store.uri} is over: attempt {latest.attempt} has claimed it")
        elif not latest.released:
            _watch_lease(store, latest.owner)
        fresh = resume == "never" and latest.owner != owner
        claimed = Latest(
            owner=owner,
            attempt=attempt or latest.attempt + 1,
            nonce=nonce,
            step=0 if fresh else latest.step,
            manifest=None if fresh else latest.manifest,
        )
        try:
            return cls(store, claimed, tag=store.replace(LATEST, claimed.to_json(), etag=tag), job=job)
        except PreconditionFailed as error:
            raise Fenced(f"run {store.uri} was claimed by another attempt this very moment: {error}") from error

    def publish(self, *, step: int, manifest: str) -> None:
        """Make a checkpoint the newest.

        Raises:
            Fenced: the run is no longer ours.
        """
        self._move(replace(self.latest, step=step, manifest=manifest, nonce=secrets.token_hex(8)))

    def release(self) -> None:
        """Say that this owner has stopped for good, so that another job need not wait."""
        self._stopped.set()
        self._beats.join()
        self._move(replace(self.latest, released=True, nonce=secrets.token_hex(8)))

    def _move(self, to: Latest) -> None:
        try:
            self._tag = self._store.replace(LATEST, to.to_json(), etag=self._tag)
        except PreconditionFailed as error:
            now = Latest.from_json(self._store.get(LATEST))
            raise Fenced(
                f"attempt {self.latest.attempt} may not publish to {self._store.uri}: "
                f"attempt {now.attempt} of owner {now.owner} holds it"
            ) from error
        self.latest = to

    def _renew(self, job: str) -> None:
        beat = 0
        while not self._stopped.wait(0 if beat == 0 else LEASE_SECONDS):
            beat += 1
            lease = Lease(owner=self.latest.owner, job=job, beat=beat)
            try:
                self._store.put(LEASE, lease.to_json(), deadline_seconds=LEASE_SECONDS)
            except StoreError:
                continue  # The lease only informs; the fence is LATEST.


def _watch_lease(store: ObjectStore, owner: str) -> None:
    """Return when nobody renews the lease.

    Raises:
        RunInUse: somebody does.
    """
    first = None
    until = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < until:
        try:
            lease = Lease.from_json(store.get(LEASE))
        except ObjectMissing:
            return
        if lease.owner != owner:
            return
        first = first or lease
        if lease.beat != first.beat:
            raise RunInUse(
                f"run {store.uri} is in use by job {lease.job or lease.owner}: stop that job, "
                "or give this one a runName of its own"
            )
        time.sleep(0.25)
