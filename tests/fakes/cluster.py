"""A cluster in memory with workers that train, in simulated time: no sleeping, no randomness, no threads.

`FakeCluster` keeps the API's promises (one write wins, names collide, a status that is too large is refused) and notes
every broken rule of the operator in `violations`. `World` is its clock: waiting lets workers start, step, save and end,
and lets faults happen. `run_to_rest` runs the real loop in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from steadfast_contract.exits import ExitCode, FailureClass
from steadfast_contract.heartbeat import Phase, Pulse
from steadfast_operator.api.labels import worker_name
from steadfast_operator.api.profile import ClusterTrainingProfile, ProfileMetadata
from steadfast_operator.api.types import TrainingJob, TrainingJobStatus
from steadfast_operator.core.actions import CreateWorker, Decision, EmitEvent
from steadfast_operator.core.observation import AttemptRecord, Limits, Observation, Worker, WorkerEnd, WorkerPhase
from steadfast_operator.shell.loop import run_job
from steadfast_operator.shell.ports import ClusterError, ConflictError

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
TICK = 0.5
MAX_STATUS_BYTES = 8192


class OperatorKilled(BaseException):
    """SIGKILL of the operator, between two API calls."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something bad, `after` seconds after the attempt's first worker was created, once in each matching attempt."""

    kind: str
    """A failure class; or vanish, evict, strand (evicted from a dead node), hang, silence (an agent never answers);
    or, with attempt=0: suspend, resume, delete, outage."""
    after: float
    node_rank: int = 0
    attempt: int | None = 1
    """None: every attempt; 0: after so many seconds of the world."""


class FakeCluster:
    """One job, its workers and records, with an API server's manners."""

    def __init__(self, job: TrainingJob) -> None:
        self.job: TrainingJob | None = job
        self.profile: ClusterTrainingProfile | None = ClusterTrainingProfile(metadata=ProfileMetadata(name="default"))
        self.isolated = False
        self.now = EPOCH
        self.workers: dict[str, Worker] = {}
        self.node_ranks: dict[str, int] = {}
        self.graces: dict[str, int] = {}
        self.records: dict[int, AttemptRecord] = {}
        self.events: list[EmitEvent] = []
        self.created: list[CreateWorker] = []
        self.attempts_seen: list[int] = []
        self.violations: list[str] = []
        self.writes = 0
        self.kill_at: tuple[int, bool] | None = None
        """Number of the write that kills its writer, and whether it still takes effect."""
        self.down = False

    async def fetch_job(self) -> TrainingJob | None:
        self._answer()
        return self.job

    async def list_workers(self) -> tuple[Worker, ...]:
        self._answer()
        return tuple(self.workers.values())

    async def fetch_profile(self, name: str) -> ClusterTrainingProfile | None:
        self._answer()
        return self.profile if self.profile and self.profile.metadata.name == name else None

    async def fetch_record(self, number: int) -> AttemptRecord | None:
        self._answer()
        return self.records.get(number)

    async def create_record(self, record: AttemptRecord) -> bool:
        last = self._write()
        new = record.number not in self.records
        if new:
            self.records[record.number] = record
        self._die(last)
        return new

    async def isolate_workers(self, job: TrainingJob) -> None:
        last = self._write()
        self.isolated = True
        self._die(last)

    async def create_worker(self, job: TrainingJob, action: CreateWorker) -> bool:
        last = self._write()
        name = worker_name(job=job.metadata.name, uid=job.metadata.uid, serial=action.serial)
        new = name not in self.workers
        if new:
            self._check_creation(action)
            self.created.append(action)
            self.node_ranks[name] = action.node_rank
            self.workers[name] = Worker(
                name=name,
                serial=action.serial,
                attempt=action.attempt,
                phase=WorkerPhase.PENDING,
                created_at=self.now,
                placed_at=self.now,
            )
        self._die(last)
        return new

    async def delete_workers(self, names: tuple[str, ...], grace_seconds: int) -> None:
        last = self._write()
        for name in names:
            worker = self.workers.get(name)
            if worker is not None and worker.terminating_since is None:
                self.workers[name] = replace(worker, terminating_since=self.now, grace_seconds=grace_seconds)
                self.graces[name] = grace_seconds
        self._die(last)

    async def write_status(self, job: TrainingJob, status: TrainingJobStatus) -> None:
        last = self._write()
        if self.job is None or self.job != job:
            raise ConflictError("The job has changed.")
        text = status.model_dump_json(by_alias=True, exclude_none=True)
        if len(text) > MAX_STATUS_BYTES:
            self.violations.append(f"status of {len(text)} bytes")
        stored = TrainingJobStatus.model_validate_json(text)
        if stored != status:
            self.violations.append("the status changes on its way through JSON")
        if stored.attempt < self.job.status.attempt:
            self.violations.append("the attempt went back")
        self.attempts_seen.append(stored.attempt)
        self.job = self.job.model_copy(update={"status": stored})
        self._die(last)

    async def emit_event(self, job: TrainingJob, event: EmitEvent) -> None:
        last = self._write()
        self.events.append(event)
        self._die(last)

    def edit(self, **spec: object) -> None:
        """What a user's `kubectl patch` does."""
        if self.job is not None:
            meta = self.job.metadata.model_copy(update={"generation": self.job.metadata.generation + 1})
            edited = self.job.spec.model_copy(update=spec)
            self.job = self.job.model_copy(update={"spec": edited, "metadata": meta})

    def _answer(self) -> None:
        if self.down:
            raise ClusterError("The API server does not answer.")

    def _write(self) -> bool:
        """Count a write; True when its writer dies of it."""
        self._answer()
        self.writes += 1
        if self.kill_at is None or self.writes != self.kill_at[0]:
            return False
        if not self.kill_at[1]:
            raise OperatorKilled
        return True

    def _die(self, last: bool) -> None:
        if last:
            raise OperatorKilled

    def _check_creation(self, action: CreateWorker) -> None:
        assert self.job is not None
        if not self.isolated:
            self.violations.append(f"{action} within reach of strangers")
        if action.attempt != self.job.status.attempt or action.attempt not in self.records:
            self.violations.append(f"{action} before its attempt was persisted")
        if any(c.serial == action.serial and c.attempt != action.attempt for c in self.created):
            self.violations.append(f"{action} has the serial of another attempt's worker")
        for name, other in self.workers.items():
            same_slot = other.attempt == action.attempt and self.node_ranks[name] == action.node_rank
            since = other.terminating_since
            stuck = since is not None and self.now - since >= timedelta(seconds=Limits().terminating_wait_seconds)
            if same_slot or (other.attempt != action.attempt and not other.ended and not stuck):
                self.violations.append(f"{action} while {name} lives")


@dataclass
class World:
    """Time, the workers' lives and the faults. It is the loop's clock."""

    cluster: FakeCluster
    faults: tuple[Fault, ...] = ()
    steps: int = 10
    checkpoint_every: int = 3
    committed: int = -1
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    _fired: set[tuple[Fault, int]] = field(default_factory=set)
    _stranded: set[str] = field(default_factory=set)
    _silent: set[str] = field(default_factory=set)
    _hung: set[int] = field(default_factory=set)
    _breaths: int = 0
    _outage_until: datetime = EPOCH

    def now(self) -> datetime:
        return self.cluster.now

    async def wait(self, wake: asyncio.Event, seconds: float | None) -> None:
        await asyncio.sleep(0)
        self._breaths = self._breaths + 1 if seconds == 0 else 0
        assert self._breaths < 50, "the loop does not settle"
        end = self.now() + timedelta(seconds=10**6 if seconds is None else seconds)
        while self.now() < end and not wake.is_set():
            if seconds is None:
                assert self.future(), "the loop waits for ever"
            self.tick(min(TICK, (end - self.now()).total_seconds()))

    def future(self) -> list[Fault]:
        """Faults in the world's own time that are still to come."""
        return [f for f in self.faults if f.attempt == 0 and (f, 0) not in self._fired]

    def tick(self, seconds: float = TICK) -> None:
        """Let a little time pass."""
        cluster = self.cluster
        before = {name: self._visible(w) for name, w in cluster.workers.items()}, cluster.job
        cluster.now += timedelta(seconds=seconds)
        self._strike()
        cluster.down = cluster.now < self._outage_until
        for worker in list(cluster.workers.values()):
            self._live(worker)
        for attempt in sorted({w.attempt for w in cluster.workers.values()}):
            self._train(attempt)
        if before != ({name: self._visible(w) for name, w in cluster.workers.items()}, cluster.job):
            self.wake.set()

    @staticmethod
    def _visible(worker: Worker) -> tuple[object, ...]:
        """What a watch and a change of readiness tell; steps are not."""
        return (worker.phase, worker.terminating_since, worker.ready, worker.master, worker.trains)

    def _set(self, worker: Worker, **changes: object) -> None:
        self.cluster.workers[worker.name] = replace(worker, **changes)  # type: ignore[arg-type]

    def _gang(self, attempt: int) -> dict[int, Worker]:
        cluster = self.cluster
        return {cluster.node_ranks[w.name]: w for w in cluster.workers.values() if w.attempt == attempt}

    def _live(self, worker: Worker) -> None:
        """Starting, and ending after a deletion."""
        cluster, age = self.cluster, (self.now() - worker.created_at).total_seconds()
        if worker.terminating_since is not None:
            saving = 1.0 if cluster.graces.get(worker.name, 0) and not worker.ended else 0.0
            ending = (self.now() - worker.terminating_since).total_seconds()
            if worker.name not in self._stranded and ending >= saving:
                self._save(worker)
                del cluster.workers[worker.name]
        elif worker.phase == WorkerPhase.PENDING and age >= 0.5:
            self._set(worker, phase=WorkerPhase.RUNNING)
        elif worker.phase == WorkerPhase.RUNNING and not worker.ready and age >= 1 and worker.name not in self._silent:
            first = cluster.node_ranks[worker.name] == 0
            self._set(worker, ready=True, master="10.0.0.1:29500" if first else "", progress=Pulse())

    def _save(self, worker: Worker) -> None:
        """A worker that ends with grace, and whose gang is whole, leaves a checkpoint."""
        gang = self._gang(worker.attempt)
        whole = len(gang) == len(self.cluster.records[worker.attempt].serials)
        if whole and worker.progress and self.cluster.graces.get(worker.name) and worker.attempt not in self._hung:
            self.committed = max(self.committed, worker.progress.step)

    def _train(self, attempt: int) -> None:
        """All ranks step together, or none does; those left by a lost peer fail after two seconds."""
        gang, size = self._gang(attempt), len(self.cluster.records[attempt].serials)
        alive = [w for w in gang.values() if not w.ended and w.terminating_since is None]
        begun = any(w.trains for w in gang.values())
        if attempt in self._hung or not alive:
            return
        if len(alive) < size:
            lost = any(w.phase == WorkerPhase.FAILED or w.terminating_since for w in gang.values()) or len(gang) < size
            if begun and lost and self._since(alive[0]) >= 2:
                for worker in alive:
                    self.end(worker, FailureClass.COLLECTIVE_ERROR)
            return
        if not all(w.ready for w in alive):
            return
        progress = alive[0].progress or Pulse()
        if not progress.updated_at or self._since(alive[0]) >= 1:
            pulse = self._next(progress)
            for worker in alive:
                done = progress.phase == Phase.DONE
                if done:
                    end = WorkerEnd(code=0, failure_class=None, message="", rank=None, at=self.now())
                    self._set(worker, phase=WorkerPhase.SUCCEEDED, end=end)
                else:
                    self._set(worker, progress=pulse)

    def _since(self, worker: Worker) -> float:
        return self.now().timestamp() - (worker.progress.updated_at if worker.progress else 0.0)

    def _next(self, pulse: Pulse) -> Pulse:
        at = self.now().timestamp()
        if pulse.phase < Phase.RESTORING:
            start = max(self.committed, 0)
            return Pulse(phase=Phase.RESTORING, steps=self.steps, resumed_from=start, updated_at=at)
        step = max(pulse.step, pulse.resumed_from) + 1 if pulse.phase >= Phase.TRAINING else pulse.resumed_from
        step = min(step, self.steps)
        if step and (step % self.checkpoint_every == 0 or step == self.steps):
            self.committed = max(self.committed, step)
        phase = Phase.DONE if step == self.steps else Phase.TRAINING
        speed = {"tokens": 256 * step, "tokens_per_second": 256.0, "loss": 5.0 / (step + 1)}
        return replace(pulse, phase=phase, step=step, committed=self.committed, updated_at=at, **speed)  # type: ignore[arg-type]

    def end(self, worker: Worker, failure_class: FailureClass) -> None:
        """A worker fails by itself."""
        code = ExitCode.SAVED if failure_class == FailureClass.PREEMPTED else ExitCode.USER_ERROR
        end = WorkerEnd(code=code, failure_class=failure_class, message="simulated", rank=0, at=self.now())
        self._set(worker, phase=WorkerPhase.FAILED, end=end)

    def _strike(self) -> None:
        current = self.cluster.job.status.attempt if self.cluster.job else 0
        for fault in self.faults:
            attempt = current if fault.attempt is None else fault.attempt
            if (fault, attempt) in self._fired or (fault.attempt is None and not attempt):
                continue
            if attempt == 0:
                due = (self.now() - EPOCH).total_seconds() >= fault.after
                target = None
            else:
                gang = self._gang(attempt)
                target, first = gang.get(fault.node_rank), gang.get(0)
                since = first.created_at if first else None
                due = since is not None and (self.now() - since).total_seconds() >= fault.after
                due = due and target is not None and not target.ended and target.terminating_since is None
            if due:
                self._fired.add((fault, attempt))
                self._hit(fault, target)

    def _hit(self, fault: Fault, target: Worker | None) -> None:
        cluster = self.cluster
        match fault.kind:
            case "suspend" | "resume":
                cluster.edit(suspend=fault.kind == "suspend")
            case "delete":
                cluster.job, cluster.workers = None, {}
            case "outage":
                self._outage_until = self.now() + timedelta(seconds=20)
            case _:
                assert target is not None
                self._hit_worker(fault.kind, target)

    def _hit_worker(self, kind: str, target: Worker) -> None:
        cluster = self.cluster
        match kind:
            case "vanish":
                del cluster.workers[target.name]
            case "evict" | "strand":
                stranded = kind == "strand"
                self._set(target, terminating_since=self.now(), ready=target.ready and not stranded)
                cluster.graces[target.name] = 30
                self._stranded |= {target.name} if stranded else set()
            case "hang":
                self._hung.add(target.attempt)
            case "silence":
                self._silent.add(target.name)
            case _:
                self.end(target, FailureClass(kind))


@dataclass
class Trace:
    """What the loop did until it came to rest."""

    world: World
    decisions: list[tuple[Observation, Decision]] = field(default_factory=list)

    @property
    def reasons(self) -> list[str]:
        """Reasons in their order, without repetitions."""
        found = [str(d.reason) for _, d in self.decisions]
        return [reason for i, reason in enumerate(found) if i == 0 or found[i - 1] != reason]

    @property
    def status(self) -> TrainingJobStatus:
        assert self.world.cluster.job is not None
        return self.world.cluster.job.status


def a_world(job: TrainingJob, *faults: Fault, **options: int) -> World:
    """A fresh world with this job; its `steps` are the job's."""
    return World(cluster=FakeCluster(job), faults=faults, steps=job.spec.train.steps or 10, **options)


async def run_to_rest(world: World, *, limits: Limits | None = None, kills: Iterable[tuple[int, bool]] = ()) -> Trace:
    """Run the real loop until nothing is left to happen, with an operator that dies at these writes and comes back."""
    trace = Trace(world)
    to_come = list(kills)
    while True:
        world.cluster.kill_at = to_come[0] if to_come else None
        try:
            await run_job(
                world.cluster,
                world,
                wake=world.wake,
                limits=limits,
                on_decision=lambda seen, decision: trace.decisions.append((seen, decision)),
                until_rest=True,
            )
        except OperatorKilled:
            to_come.pop(0)
            world.tick()
            continue
        if not world.future() or world.cluster.job is None:
            return trace
        world.tick()
