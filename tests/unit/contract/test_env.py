"""The environment round trips, and says which variable is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_contract.env import RankEnv, WorkerEnv

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
NUMBER = st.integers(0, 2**31)
WORKERS = st.builds(
    WorkerEnv,
    job=TEXT,
    job_uid=TEXT,
    worker=TEXT,
    attempt=NUMBER,
    node_rank=NUMBER,
    num_workers=NUMBER,
    ranks_per_worker=NUMBER,
    master=TEXT,
    training=TEXT,
    folder=TEXT,
    host=TEXT,
    port=NUMBER,
    master_port=NUMBER,
)
RANKS = st.builds(
    RankEnv,
    rank=NUMBER,
    local_rank=NUMBER,
    world_size=NUMBER,
    local_world_size=NUMBER,
    master_addr=TEXT,
    master_port=NUMBER,
    training=TEXT,
    job=TEXT,
    job_uid=TEXT,
    attempt=NUMBER,
    folder=TEXT,
    master_listen_fd=st.integers(-1, 100),
)
A_WORKER = WorkerEnv(
    job="a/b", job_uid="u", worker="w", attempt=3, node_rank=0, num_workers=1, ranks_per_worker=2
).to_mapping()


@given(WORKERS)
def test_a_worker_reads_what_the_operator_wrote(worker):
    assert WorkerEnv.from_mapping(worker.to_mapping() | {"PATH": "/bin"}) == worker


@given(RANKS)
def test_a_rank_reads_what_the_agent_wrote(rank):
    assert RankEnv.from_mapping(rank.to_mapping() | {"PATH": "/bin"}) == rank


@pytest.mark.parametrize("name", sorted(A_WORKER))
def test_a_missing_variable_of_a_worker_is_named(name):
    env = {key: value for key, value in A_WORKER.items() if key != name}
    with pytest.raises(ValueError, match=rf"missing: {name}$"):
        WorkerEnv.from_mapping(env)


@pytest.mark.parametrize(
    ("parse", "name", "text"),
    [
        pytest.param(WorkerEnv.from_mapping, "STEADFAST_ATTEMPT", "three", id="attempt of a worker is a word"),
        pytest.param(WorkerEnv.from_mapping, "STEADFAST_PORT", "", id="port of a worker is empty"),
        pytest.param(RankEnv.from_mapping, "RANK", "1.0", id="rank is a fraction"),
        pytest.param(RankEnv.from_mapping, "MASTER_PORT", "http", id="master port is a word"),
    ],
)
def test_a_number_that_is_none_is_named(parse, name, text):
    with pytest.raises(ValueError, match=f"{name}={text!r} is not an integer"):
        parse(A_WORKER | {name: text})


def test_a_rank_started_by_torchrun_keeps_our_defaults():
    env = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    expected = RankEnv(rank=1, local_rank=1, world_size=2, master_addr="here", master_port=29500)
    assert RankEnv.from_mapping(env) == expected


def test_a_rank_started_alone_is_the_whole_world():
    assert RankEnv.from_mapping({}) == RankEnv(rank=0, world_size=1, master_port=0, attempt=0, master_listen_fd=-1)


def test_names_of_variables_are_a_frozen_surface():
    assert set(WorkerEnv.from_mapping(A_WORKER).to_mapping()) == {
        *("STEADFAST_JOB", "STEADFAST_JOB_UID", "STEADFAST_WORKER", "STEADFAST_ATTEMPT", "STEADFAST_NODE_RANK"),
        *("STEADFAST_NUM_WORKERS", "STEADFAST_RANKS_PER_WORKER", "STEADFAST_MASTER", "STEADFAST_TRAINING"),
        *("STEADFAST_FOLDER", "STEADFAST_HOST", "STEADFAST_PORT", "STEADFAST_MASTER_PORT"),
    }
    assert set(RankEnv().to_mapping()) == {
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "STEADFAST_TRAINING"),
        *("STEADFAST_JOB", "STEADFAST_JOB_UID", "STEADFAST_ATTEMPT", "STEADFAST_FOLDER", "STEADFAST_MASTER_LISTEN_FD"),
    }
