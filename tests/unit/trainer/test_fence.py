"""Who may publish: every order of claims, publications and lost replies that two gangs can meet."""

import json
from dataclasses import replace

import pytest

from fakes.store import FakeObjectStore, FakeService
from steadfast_contract.checkpoints import LATEST, LEASE, Latest, Lease
from steadfast_trainer.checkpoint import fence as fence_module
from steadfast_trainer.checkpoint.fence import Fence, Fenced, RunInUse
from steadfast_trainer.checkpoint.load import CheckpointUnreadable
from steadfast_trainer.checkpoint.store import PreconditionFailed, StoreUnavailable


class Store(FakeObjectStore):
    """A store whose next conditional writes meet something."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.before, self.unanswered = [], 0

    def _write_if(self, key, data, *, expected, deadline_seconds):
        if self.before:
            self.before.pop(0)()
        tag = super()._write_if(key, data, expected=expected, deadline_seconds=deadline_seconds)
        if self.unanswered:
            self.unanswered -= 1
            raise StoreUnavailable("done, but nobody said so until the deadline")
        return tag

    @property
    def latest(self):
        return Latest.from_json(self.get(LATEST))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No lease but where a test wants one: its thread would take part in scripted faults."""
    monkeypatch.setattr(Fence, "_renew", lambda self, job: None)
    monkeypatch.setattr(fence_module, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(fence_module, "POLL_SECONDS", 0.005)


@pytest.fixture
def store():
    return Store("s3://runs/a")


def claim(store, *, owner="one", attempt=1, resume="auto", job="team/moe"):
    return Fence.claim(store, owner=owner, job=job, attempt=attempt, resume=resume)


def with_checkpoint(store, *, owner="one", attempt=1, step=10):
    held = claim(store, owner=owner, attempt=attempt)
    held.publish(step=step, manifest=f"{step}/manifest.json")
    return held


def beating(store, owner, *, job="team/other"):
    """Each reading of the lease finds it moved on."""
    beats = iter(range(1000))
    real = store.get

    def get(key, **options):
        if key == LEASE:
            return Lease(owner=owner, job=job, beat=next(beats)).to_json()
        return real(key, **options)

    store.get = get


def standing(store, owner):
    store.put(LEASE, Lease(owner=owner, job="", beat=5).to_json())


@pytest.mark.parametrize(("told", "attempt"), [(0, 1), (1, 1), (4, 4)])
def test_a_fresh_run_is_claimed(store, told, attempt):
    held = claim(store, attempt=told)
    assert store.latest == held.latest
    assert (held.latest.owner, held.latest.attempt, held.latest.step, held.latest.manifest) == ("one", attempt, 0, None)


@pytest.mark.parametrize(("told", "attempt"), [(0, 2), (2, 2), (7, 7)])
def test_a_higher_attempt_of_the_same_owner_continues(store, told, attempt):
    with_checkpoint(store)
    held = claim(store, attempt=told)
    assert (held.latest.attempt, held.latest.step, held.latest.manifest) == (attempt, 10, "10/manifest.json")


@pytest.mark.parametrize("told", [1, 2, 3])
def test_an_attempt_that_is_over_is_fenced(store, told):
    with_checkpoint(store, attempt=3)
    before = store.latest
    with pytest.raises(Fenced, match=rf"attempt {told} of run s3://runs/a is over: attempt 3 has claimed it"):
        claim(store, attempt=told)
    assert store.latest == before


def test_a_released_run_is_free_for_another_owner_at_once(store, monkeypatch):
    with_checkpoint(store).release()
    assert store.latest.released
    beating(store, "one")  # must not even be looked at
    held = claim(store, owner="two")
    assert (held.latest.owner, held.latest.step, held.latest.released) == ("two", 10, False)


def test_a_run_whose_owner_lives_is_in_use(store):
    with_checkpoint(store)
    before = store.latest
    beating(store, "one", job="team/llm")
    with pytest.raises(RunInUse, match="run s3://runs/a is in use by job team/llm"):
        claim(store, owner="two")
    assert store.latest == before


@pytest.mark.parametrize("lease_of", ["one", "older", None], ids=["stands still", "is of an older owner", "is missing"])
def test_a_run_whose_owner_is_dead_is_taken_over_after_watching(store, lease_of, monkeypatch):
    with_checkpoint(store)
    if lease_of:
        standing(store, lease_of)
    waits = []
    monkeypatch.setattr(fence_module.time, "sleep", waits.append)
    monkeypatch.setattr(fence_module.time, "monotonic", lambda: sum(waits))
    held = claim(store, owner="two")
    assert (held.latest.owner, held.latest.step) == ("two", 10)
    assert sum(waits) >= fence_module.WATCH_SECONDS


def test_the_beats_of_somebody_else_do_not_keep_a_run(store):
    with_checkpoint(store)
    beating(store, "older")
    assert claim(store, owner="two").latest.owner == "two"


def test_an_owner_that_has_only_just_claimed_is_not_taken_for_dead(store):
    """Its first beat comes some milliseconds after its claim."""
    claim(store)
    standing(store, "older")
    real, asked = store.get, []

    def get(key, **options):
        asked.append(key)
        if len(asked) > 2:
            store.put(LEASE, Lease(owner="one", job="j", beat=len(asked)).to_json())
        return real(key, **options)

    store.get = get
    with pytest.raises(RunInUse):
        claim(store, owner="two")


def test_a_new_owner_never_writes_over_the_checkpoints_of_the_old_one(store):
    """Both call their first attempt 1; the keys of shards must differ all the same."""
    with_checkpoint(store, attempt=3).release()
    second = claim(store, owner="two", attempt=1)
    assert second.latest.attempt == 4
    with pytest.raises(Fenced, match="attempt 1 of run s3://runs/a is over: attempt 1 has claimed it"):
        claim(store, owner="two", attempt=1)
    assert claim(store, owner="two", attempt=2).latest.attempt == 5
    assert claim(store, owner="two", attempt=0).latest.attempt == 6
    store.put(LATEST, replace(store.latest, released=True).to_json())
    assert claim(store, owner="one", attempt=4).latest.attempt == 10


@pytest.mark.parametrize(
    ("resume", "owner", "manifest"),
    [
        pytest.param("auto", "two", "10/manifest.json", id="auto continues under a new owner"),
        pytest.param("auto", "one", "10/manifest.json", id="auto continues after a restart"),
        pytest.param("never", "two", None, id="never starts afresh under a new owner"),
        pytest.param("never", "one", "10/manifest.json", id="never does not forget its own work after a restart"),
    ],
)
def test_where_a_claim_starts(store, resume, owner, manifest):
    with_checkpoint(store).release()
    held = claim(store, owner=owner, attempt=0, resume=resume)
    assert (held.latest.manifest, held.latest.step) == (manifest, 10 if manifest else 0)


def test_an_old_attempt_cannot_publish_after_a_newer_claim(store):
    old = with_checkpoint(store)
    claim(store, attempt=2)
    before = store.latest
    with pytest.raises(Fenced, match="attempt 1 may not publish to s3://runs/a: attempt 2 of owner one holds it"):
        old.publish(step=20, manifest="20/manifest.json")
    with pytest.raises(Fenced):
        old.release()
    assert store.latest == before


def test_a_claim_survives_a_publication_of_the_older_gang_at_the_same_moment(store):
    old = with_checkpoint(store)
    store.before.append(lambda: old.publish(step=20, manifest="20/manifest.json"))
    held = claim(store, attempt=2)
    assert (held.latest.attempt, held.latest.step) == (2, 20)


@pytest.mark.parametrize("exists", [False, True], ids=["of a fresh run", "of a run with checkpoints"])
def test_of_two_claims_at_the_same_moment_one_wins(store, exists):
    if exists:
        with_checkpoint(store)
    store.before.append(lambda: claim(store, owner="one", attempt=3))
    with pytest.raises(Fenced, match="attempt 2 of run s3://runs/a is over: attempt 3"):
        claim(store, owner="one", attempt=2)


def test_of_two_jobs_at_the_same_moment_one_wins(store):
    store.before.append(lambda: claim(store, owner="two"))
    beating(store, "two")
    with pytest.raises(RunInUse):
        claim(store, owner="one")
    assert store.latest.owner == "two"


def test_a_chain_moves_step_by_step(store):
    held = with_checkpoint(store)
    held.publish(step=20, manifest="20/manifest.json")
    assert (store.latest.step, store.latest.manifest, store.latest.attempt) == (20, "20/manifest.json", 1)
    assert store.latest == held.latest


@pytest.mark.parametrize("move", ["claim", "claim again", "publish", "release"])
def test_a_lost_reply_counts_as_success(store, move):
    held = None if move == "claim" else with_checkpoint(store)
    store.service.lose_replies(writes=1)
    if move.startswith("claim"):
        held = claim(store, attempt=2)
    elif move == "publish":
        held.publish(step=20, manifest="20/manifest.json")
    else:
        held.release()
    assert store.latest == held.latest
    assert store.latest.released == (move == "release")


def test_a_lost_reply_does_not_hide_that_another_attempt_won(store):
    held = with_checkpoint(store)
    store.service.lose_replies(writes=1, meanwhile=lambda: claim(store, attempt=2))
    with pytest.raises(Fenced):
        held.publish(step=20, manifest="20/manifest.json")


def test_a_publication_whose_reply_never_came_does_not_fence_its_own_attempt(store):
    held = with_checkpoint(store)
    store.unanswered = 1
    with pytest.raises(StoreUnavailable):
        held.publish(step=20, manifest="20/manifest.json")
    assert store.latest.step == 20  # it had been done all the same
    held.settle()
    assert held.latest.step == 20  # what comes next has the right parent
    held.publish(step=30, manifest="30/manifest.json")
    assert store.latest.step == 30


def test_a_publication_that_was_never_done_can_be_followed_by_the_next(store):
    held = with_checkpoint(store)
    store.service.fail_next(StoreUnavailable("nobody listens"))
    with pytest.raises(StoreUnavailable):
        held.publish(step=20, manifest="20/manifest.json")
    assert (held.latest.step, store.latest.step) == (10, 10)
    held.publish(step=30, manifest="30/manifest.json")
    assert store.latest.step == 30


def test_after_an_unanswered_publication_a_newer_claim_still_fences(store):
    held = with_checkpoint(store)
    store.unanswered = 1
    with pytest.raises(StoreUnavailable):
        held.publish(step=20, manifest="20/manifest.json")
    claim(store, attempt=2)
    with pytest.raises(Fenced):
        held.publish(step=30, manifest="30/manifest.json")


def test_a_release_that_cannot_be_written_does_not_spoil_a_finished_run(store, capsys):
    held = with_checkpoint(store)
    store.service.go_away()
    held.release()
    assert "Could not release the run" in capsys.readouterr().out


def test_a_deleted_latest_is_said(store):
    held = with_checkpoint(store)
    store.delete(LATEST)
    with pytest.raises(Fenced, match="its LATEST was deleted"):
        held.publish(step=20, manifest="20/manifest.json")


@pytest.mark.parametrize(("key", "named"), [(LATEST, "LATEST"), (LEASE, "LEASE")])
def test_a_damaged_document_is_named(store, key, named):
    with_checkpoint(store)
    store.put(key, b'{"version": 1')
    with pytest.raises(CheckpointUnreadable, match=f"s3://runs/a/{named}: not a"):
        claim(store, owner="two")


def test_every_write_of_latest_has_a_nonce_of_its_own(store):
    nonces = set()
    held = claim(store)
    for step in (10, 20):
        nonces.add(store.latest.nonce)
        held.publish(step=step, manifest="m")
    held.release()
    assert len(nonces | {store.latest.nonce}) == 3


def test_a_claim_that_loses_does_not_beat(store, monkeypatch):
    beats = []
    monkeypatch.setattr(Fence, "_renew", lambda self, job: beats.append(job))
    with_checkpoint(store, attempt=3)
    with pytest.raises(Fenced):
        claim(store, attempt=2)
    assert beats == ["team/moe"]


class TestLease:
    """With its thread."""

    @pytest.fixture(autouse=True)
    def beats(self, monkeypatch, quiet):
        monkeypatch.undo()
        monkeypatch.setattr(fence_module, "LEASE_SECONDS", 0.01)
        monkeypatch.setattr(fence_module, "WATCH_SECONDS", 2.0)
        monkeypatch.setattr(fence_module, "POLL_SECONDS", 0.01)

    def test_a_living_owner_keeps_its_run(self):
        service = FakeService()
        held = claim(Store("s3://runs/a", service=service))
        try:
            with pytest.raises(RunInUse, match="in use by job team/moe"):
                claim(Store("s3://runs/a", service=service), owner="two")
        finally:
            held.release()
        claim(Store("s3://runs/a", service=service), owner="two").release()

    def test_a_store_that_fails_does_not_stop_the_beats(self):
        store = Store("s3://runs/a")
        store.service.fail_next(StoreUnavailable("gone"), calls=0)
        held = claim(store)
        store.service.fail_next(PreconditionFailed("odd"), calls=3)
        while store.service._failures or not store.exists(LEASE):
            pass
        held.release()
        assert json.loads(store.get(LEASE))["owner"] == "one"

    def test_a_released_run_has_no_beats(self):
        store = Store("s3://runs/a")
        held = claim(store)
        held.release()
        assert not held._beats.is_alive()
