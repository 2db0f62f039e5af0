"""Two real ranks over gloo: they agree, and they notice when one is killed."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steadfast_contract.env import RankEnv

pytestmark = pytest.mark.local
PROGRAM = Path(__file__).parent / "gang_program.py"


@pytest.fixture
def gang():
    """Run two ranks; what each printed, None for one that said nothing."""
    processes = []

    def run(scenario):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            for rank in (0, 1):
                env = RankEnv(
                    rank=rank,
                    world_size=2,
                    master_port=listener.getsockname()[1],
                    master_listen_fd=listener.fileno() if rank == 0 else -1,
                )
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(PROGRAM), scenario],
                        env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | env.to_mapping(),
                        pass_fds=[listener.fileno()] if rank == 0 else [],
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
        return [json.loads(out) if (out := p.communicate(timeout=60)[0]) else None for p in processes]

    yield run
    for process in processes:
        process.kill()
        process.wait()


def test_ranks_sum_agree_and_tell(gang):
    first, second = gang("together")
    assert first == second
    assert first["told"] == "resume at 7"
    assert first["sum"] == [0.0, 3.0, 6.0, 9.0]
    norm = pytest.approx((6 * 1.5**2) ** 0.5)
    assert first["nothing"] == [2.5, norm, False, False, [1.5], [0.0]]
    assert first["save"] == [2.5, norm, True, False, [1.5], [0.0]]
    assert first["stop"] == [2.5, norm, False, True, [1.5], [0.0]]


def test_a_killed_peer_is_noticed_within_seconds(gang):
    first, second = gang("peer_dies")
    assert second is None
    assert first["error"]
    assert first["seconds"] < 5


def test_a_killed_first_rank_is_noticed_by_those_who_wait_for_its_word(gang):
    first, second = gang("first_rank_dies")
    assert first is None
    assert "rank 0 did not say 'never said'" in second["errors"][0]
    assert "cannot be reached" in second["errors"][1]
    assert second["seconds"] < 10
