"""The agent with real processes and a fake training program: starting, watching, ending, answering."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from steadfast_contract.env import WorkerEnv
from steadfast_contract.exits import ExitCode, FailureClass, RankReport, failure_class
from steadfast_contract.folder import agent_path, pulse_path, report_path, termination_path
from steadfast_contract.heartbeat import AgentPhase, AgentStatus

pytestmark = pytest.mark.local
START = "import sys; from steadfast_agent.__main__ import main; main(sys.argv[1])"
SECONDS = 20


class Worker:
    """One agent process with a plan for each rank."""

    def __init__(self, folder, plan, *, program="fake_program", node_rank=0, num_workers=1, env=None):
        self.folder = str(folder)
        self.log = folder / "log"
        worker = WorkerEnv(
            job="team/moe",
            job_uid="uid",
            worker="moe-1",
            attempt=3,
            node_rank=node_rank,
            num_workers=num_workers,
            ranks_per_worker=len(plan),
            master="" if node_rank == 0 else "127.0.0.1:29999",
            training=json.dumps({str(node_rank * len(plan) + rank): steps for rank, steps in enumerate(plan)}),
            folder=self.folder,
            host="127.0.0.1",
            port=0,
            master_port=0,
        )
        path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
        environ = os.environ | {"PYTHONPATH": path} | worker.to_mapping() | (env or {})
        environ.pop("PYTHONUNBUFFERED", None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, program], env=environ, stdout=log, stderr=subprocess.STDOUT
            )

    def wait(self):
        return self.process.wait(timeout=SECONDS)

    @property
    def report(self):
        return RankReport.from_json(termination_path(self.folder).read_text())

    @property
    def lines(self):
        return self.log.read_text().splitlines()

    def said(self, rank=0):
        return [line.removeprefix(f"[rank {rank}] ") for line in self.lines if line.startswith(f"[rank {rank}] ")]

    def environment(self, rank=0):
        return json.loads(next(line for line in self.said(rank) if line.startswith("{")))

    def get(self, path):
        wait_until(lambda: agent_path(self.folder).exists())
        address = agent_path(self.folder).read_text()
        try:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    @property
    def status(self):
        return AgentStatus.from_json(self.get("/status")[1])


def wait_until(true):
    until = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start(tmp_path):
    workers = []

    def run(*plan, **options):
        workers.append(Worker(tmp_path, plan, **options))
        return workers[-1]

    yield run
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def test_ranks_are_forked_warm_and_know_their_place(start):
    worker = start([("environment", 0)], [("environment", 0)], num_workers=2)
    assert worker.wait() == 0
    first, second = worker.environment(0), worker.environment(1)
    assert first["imported_by"] == second["imported_by"]
    assert len({first["pid"], second["pid"], first["imported_by"]}) == 3
    places = [(e["RANK"], e["LOCAL_RANK"], e["WORLD_SIZE"], e["LOCAL_WORLD_SIZE"]) for e in (first, second)]
    assert places == [("0", "0", "4", "2"), ("1", "1", "4", "2")]
    assert first["STEADFAST_ATTEMPT"] == "3"
    assert first["OMP_NUM_THREADS"] == "1"
    assert [line for line in worker.lines if "Warmed the trainer" in line]


def test_the_listening_socket_goes_to_rank_0_only(start):
    worker = start([("environment", 0)], [("environment", 0)])
    worker.wait()
    first, second = worker.environment(0), worker.environment(1)
    assert int(first["STEADFAST_MASTER_LISTEN_FD"]) >= 0
    assert second["STEADFAST_MASTER_LISTEN_FD"] == "-1"
    assert first["MASTER_PORT"] == second["MASTER_PORT"] != "0"


def test_another_worker_meets_at_the_master(start):
    worker = start([("environment", 0)], node_rank=1, num_workers=2)
    worker.wait()
    env = worker.environment(1)
    assert (env["RANK"], env["MASTER_ADDR"], env["MASTER_PORT"]) == ("1", "127.0.0.1", "29999")
    assert env["STEADFAST_MASTER_LISTEN_FD"] == "-1"


def test_a_thread_in_the_warm_process_makes_ranks_start_cold(start):
    worker = start([("environment", 0), ("wait", 75)], env={"FAKE_THREADS": "1"})
    wait_until(lambda: "waiting" in worker.said())
    assert "steadfast_worker_cold_ranks{" in worker.get("/metrics")[1]
    assert [line.split()[-1] for line in worker.get("/metrics")[1].splitlines() if "worker_cold_ranks{" in line] == [
        "1.0"
    ]
    assert worker.environment()["imported_by"] == worker.environment()["pid"]
    assert int(worker.environment()["STEADFAST_MASTER_LISTEN_FD"]) >= 0
    assert [line for line in worker.lines if "Started rank cold rank=0 reason='2 threads" in line]
    worker.process.terminate()
    assert worker.wait() == 75


ENDS = [
    pytest.param([], 0, (0, False), None, id="main returns"),
    pytest.param([("report", [0]), ("exit", 0)], 0, (0, True), None, id="done with a report"),
    pytest.param(
        [("report", [71, "loss nan"]), ("exit", 71)], 71, (71, True), "NonFiniteLoss", id="a reported failure"
    ),
    pytest.param([("exit", 64)], 64, (64, False), "UserError", id="64 without a report is an error of the user"),
    pytest.param([("exit", 75)], 75, (75, False), "UserError", id="75 without a report is an error of the user"),
    pytest.param([("sys.exit", 5)], 5, (5, False), "UserError", id="sys.exit with a number"),
    pytest.param([("sys.exit", None)], 0, (0, False), None, id="sys.exit with nothing"),
    pytest.param([("sys.exit", "no config")], 1, (1, False), "UserError", id="sys.exit with words"),
    pytest.param([("raise", "boom")], 1, (1, False), "UserError", id="an exception"),
    pytest.param([("kill", 9)], 137, (-9, False), "Unknown", id="killed"),
    pytest.param([("kill", 11)], 139, (-11, False), "Unknown", id="a segmentation fault"),
    pytest.param(
        [("report", [0]), ("kill", 9)], 137, (-9, False), "Unknown", id="killed after it had reported its end"
    ),
    pytest.param([("write", "{"), ("exit", 3)], 3, (3, False), "UserError", id="a number of its own"),
]


@pytest.mark.parametrize(("steps", "exit_code", "reported", "kind"), ENDS)
def test_the_end_of_a_rank_is_the_end_of_its_worker(start, steps, exit_code, reported, kind):
    worker = start(steps)
    assert worker.wait() == exit_code
    report = worker.report
    assert (report.code, report.reported) == reported
    assert (report.attempt, report.rank) == (3, 0)
    assert failure_class(report.code, reported=report.reported) == (FailureClass(kind) if kind else None)


def test_the_words_of_a_rank_are_forwarded(start):
    worker = start([("report", [71, "step 8: loss nan"]), ("exit", 71)])
    worker.wait()
    assert worker.report == RankReport(code=71, attempt=3, rank=0, step=7, message="step 8: loss nan")


def test_the_last_words_tell_how_far_the_first_rank_got(start):
    worker = start([("pulse", 41), ("exit", 0)], [("pulse", 40), ("exit", 0)])
    worker.wait()
    assert worker.report.progress.step == 41


def test_a_rank_without_a_report_is_quoted(start):
    worker = start([("print", "".join(f"line {n}\n" for n in range(30))), ("raise", "boom")])
    worker.wait()
    message = worker.report.message
    assert message.startswith("rank 0 left no report; its last lines:\n")
    assert message.endswith("ValueError: boom")
    assert "line 0\n" not in message


def test_every_line_of_a_rank_is_printed_with_its_rank(start):
    worker = start(
        [("print", "one\ntwo\n"), ("write", "three\nlast words without an end")], [("print", "other\n"), ("exit", 0)]
    )
    worker.wait()
    assert worker.said(0) == ["three", "last words without an endone", "two"]
    assert worker.said(1) == []  # os._exit forgets what was not flushed: the program's own doing


def test_what_the_import_says_is_said_once(start):
    worker = start([], [])
    worker.wait()
    assert sum("Imported the program" in line for line in worker.lines) == 1


def test_a_flood_of_output_is_complete(start):
    worker = start([("repeat", ["x" * 99 + "\n", 10_000]), ("write", "done")])
    worker.wait()
    assert len(worker.said()) == 10_001
    assert worker.said()[-1] == "done"


@pytest.mark.parametrize("program", ["fake_broken_program", "there_is_no_such_program"])
def test_a_program_that_cannot_be_imported_is_reported(start, tmp_path, program):
    (tmp_path / "fake_broken_program.py").write_text("import does_not_exist_anywhere\n")
    worker = start([], program=program, env={"PYTHONPATH": str(tmp_path)})
    assert worker.wait() == ExitCode.USER_ERROR
    assert worker.report.code == ExitCode.USER_ERROR
    assert f"cannot import {program}" in worker.report.message
    assert "ModuleNotFoundError" in worker.report.message


def test_one_failing_rank_ends_its_siblings(start):
    worker = start([("wait", 75)], [("sleep", 0.3), ("report", [70, "boom"]), ("exit", 70)], [("sleep", 1000)])
    assert worker.wait() == 70
    assert (worker.report.rank, worker.report.message) == (1, "boom")


def test_what_a_rank_has_started_ends_with_it(start):
    worker = start([("child", "1000"), ("sleep", 0.5), ("exit", 1)], [("child", "1000"), ("sleep", 1000)])
    worker.wait()
    children = [int(line.split()[1]) for rank in (0, 1) for line in worker.said(rank) if line.startswith("child")]
    assert len(children) == 2
    wait_until(lambda: not any(lives(pid) for pid in children))


def test_sigterm_lets_ranks_save(start):
    worker = start([("wait", 75)], [("wait", 75)])
    wait_until(lambda: "waiting" in worker.said(0) and "waiting" in worker.said(1))
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == ExitCode.SAVED
    assert (worker.report.code, worker.report.step, worker.report.reported) == (75, 7, True)


def test_sigterm_spares_what_a_rank_has_started(start):
    worker = start([("child", "1000"), ("wait", 75)])
    wait_until(lambda: "waiting" in worker.said())
    child = int(worker.said()[0].split()[1])
    os.kill(worker.status.pids[0], signal.SIGSTOP)
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: worker.status.phase == AgentPhase.STOPPING)
    assert lives(child)
    os.kill(worker.status.pids[0], signal.SIGCONT)
    assert worker.wait() == 75
    assert not lives(child)


def test_sigterm_before_training_ends_at_once(start):
    worker = start([("wait", 75)], env={"FAKE_IMPORT_SECONDS": "60"})
    wait_until(lambda: agent_path(worker.folder).exists())
    assert worker.status.phase == AgentPhase.STARTING
    assert worker.get("/readyz") == (503, "Starting\n")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == ExitCode.SAVED
    assert worker.report.message == "stopped before training"


def test_sigint_is_not_the_agents_business(start):
    worker = start([("wait", 75)])
    wait_until(lambda: "waiting" in worker.said())
    worker.process.send_signal(signal.SIGINT)
    assert worker.get("/healthz") == (200, "ok\n")
    worker.process.terminate()
    assert worker.wait() == 75


def test_ranks_die_with_their_agent(start):
    worker = start([("wait", 75)], [("sleep", 1000)])
    wait_until(lambda: "waiting" in worker.said())
    pids = worker.status.pids
    assert len(pids) == 2
    assert all(lives(pid) for pid in pids)
    worker.process.kill()
    wait_until(lambda: not any(lives(pid) for pid in pids))


def test_it_answers_probes_status_and_metrics(start):
    worker = start([("pulse", 41), ("wait", 75)], [("pulse", 40), ("wait", 75)])
    wait_until(lambda: "waiting" in worker.said(0) and "waiting" in worker.said(1))
    assert worker.get("/healthz") == (200, "ok\n")
    assert worker.get("/readyz") == (200, "Running\n")
    status = worker.status
    assert (status.worker, status.attempt, status.node_rank) == ("moe-1", 3, 0)
    assert (status.phase, status.progress.step, status.progress.loss) == (AgentPhase.RUNNING, 41, 2.5)
    host, _, port = status.master.rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()
    metrics = worker.get("/metrics")[1]
    labels = 'attempt="3",rank="{}",training_job="team/moe",worker="moe-1"'
    assert f"steadfast_rank_step{{{labels.format(0)}}} 41.0" in metrics
    assert f"steadfast_rank_step{{{labels.format(1)}}} 40.0" in metrics
    assert worker.get("/orders")[0] == 404


def test_files_of_an_earlier_container_do_not_speak_for_new_ranks(start, tmp_path):
    report_path(str(tmp_path), local_rank=0).write_text(RankReport(code=75, attempt=2).to_json())
    pulse_path(str(tmp_path), local_rank=0).write_bytes(b"old")
    termination_path(str(tmp_path)).write_text("old")
    worker = start([("exit", 75)])
    worker.wait()
    assert not worker.report.reported
    assert not pulse_path(str(tmp_path), local_rank=0).exists()


def test_an_agent_without_its_environment_names_what_is_missing():
    env = {key: value for key, value in os.environ.items() if not key.startswith("STEADFAST_")}
    done = subprocess.run(
        [sys.executable, "-m", "steadfast_agent"], env=env, capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert "STEADFAST_JOB" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_agent_never_imports_torch():
    code = "import sys, steadfast_agent.__main__; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout.split() == ["False", "False"]
