"""`steadfast delete`: it deletes one job's files, and nothing else whatever its argument says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from builders import a_job
from steadfast_cli.__main__ import main
from steadfast_operator.shell.job_folder import JobFolder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the jobs default/moe and research/moe, in a folder with something else."""
    (tmp_path / "precious").touch()
    for namespace in ("default", "research"):
        a_stored_job(tmp_path / "home", namespace).release()
    return tmp_path / "home"


def a_stored_job(home: Path, namespace: str) -> JobFolder:
    folder = JobFolder.hold(home, namespace=namespace, name="moe")
    folder.apply(a_job(**{"metadata.namespace": namespace}))
    folder.worker_folder("moe-1").mkdir(parents=True)
    return folder


def delete(home: Path, name: str) -> Result:
    return CliRunner().invoke(main, ["delete", "--", name], env={"STEADFAST_HOME": str(home)})


def jobs(home: Path) -> set[str]:
    return {str(path.parent.relative_to(home / "jobs")) for path in home.glob("jobs/*/*/job.json")}


@pytest.mark.parametrize(
    ("name", "job"),
    [
        pytest.param("moe", "default/moe", id="in the default namespace"),
        pytest.param("research/moe", "research/moe", id="in another namespace"),
    ],
)
def test_a_job_is_forgotten(home: Path, name: str, job: str) -> None:
    done = delete(home, name)
    assert (done.exit_code, done.output) == (0, f"Forgot job {job}; its checkpoints are kept.\n")
    assert jobs(home) == {"default/moe", "research/moe"} - {job}
    assert not (home / "jobs" / job).exists()


def test_a_job_that_is_not_there_is_named_with_its_home(home: Path) -> None:
    done = delete(home, "dense")
    assert (done.exit_code, done.output) == (1, f"Error: there is no job default/dense in {home}\n")
    assert not (home / "jobs/default/dense").exists()


def test_a_job_that_runs_is_not_forgotten(home: Path) -> None:
    runs = JobFolder.hold(home, namespace="default", name="moe")
    done = delete(home, "moe")
    runs.release()
    assert done.exit_code == 1
    assert "job default/moe is already looked after by process" in done.output
    assert jobs(home) == {"default/moe", "research/moe"}


@pytest.mark.parametrize(
    "name",
    [
        "", "/", ".", "..", "../..", "../../precious", "../research/moe", "default/..", "../moe", "research/", "/moe",
        "default/moe/", "default/moe/workers", "moe ", "Moe", "-moe", "moe\n", "*", "default/*", "/etc/passwd",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_and_deletes_nothing(home: Path, name: str) -> None:
    before = sorted(home.parent.rglob("*"))
    done = delete(home, name)
    assert done.exit_code == 2
    assert f"Error: {name!r} is no job's name: write NAME, or NAMESPACE/NAME\n" in done.output
    assert sorted(home.parent.rglob("*")) == before
