from __future__ import annotations

from pathlib import Path

import pytest
from bench.gang import FirstStep, first_step, read_pulse, writes_pulse

from steadfast_contract.heartbeat import PULSE_BYTES, Pulse, pack_pulse

KILLED = 100.0


def pulse(first_step_at: float, resumed_from: int = 20) -> Pulse:
    return Pulse(first_step_at=first_step_at, resumed_from=resumed_from)


@pytest.mark.parametrize(
    ("pulses", "expected"),
    [
        pytest.param([pulse(104.0), pulse(103.5)], FirstStep(104.0, 20), id="the last rank's counts"),
        pytest.param([pulse(90.0), pulse(104.0)], None, id="half a gang is none"),
        pytest.param([pulse(0.0), pulse(104.0)], None, id="a rank that has done no step yet"),
        pytest.param([pulse(90.0), pulse(91.0)], None, id="steps of the gang before do not count"),
        pytest.param(
            [pulse(90.0), pulse(91.0), pulse(104.0), pulse(104.1)],
            FirstStep(104.1, 20),
            id="pods of the gang before may still be there",
        ),
        pytest.param([pulse(103.0, 20), pulse(104.0, 40)], None, id="ranks of two gangs are no gang"),
        pytest.param([], None, id="nobody"),
    ],
)
def test_the_first_step_of_the_next_gang(pulses: list[Pulse], expected: FirstStep | None) -> None:
    assert first_step(pulses, after=KILLED) == expected


def test_a_pulse_is_read_without_a_map(tmp_path: Path) -> None:
    page = bytearray(PULSE_BYTES)
    pack_pulse(pulse(104.0), into=memoryview(page), sequence=3)
    path = tmp_path / "pulse-0"
    path.write_bytes(page)
    assert read_pulse(path) == pulse(104.0)


@pytest.mark.parametrize("content", [b"", bytes(PULSE_BYTES), bytes(10)], ids=["truncated", "unwritten", "short"])
def test_there_is_no_pulse_yet(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pulse-0"
    path.write_bytes(content)
    assert read_pulse(path) is None


def test_a_pod_without_a_pulse(tmp_path: Path) -> None:
    assert read_pulse(tmp_path / "pulse-0") is None


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ("7f00-7f01 rw-s 00000000 fe:00 12 /run/steadfast/pulse-0", True),
        ("7f00-7f01 r--s 00000000 fe:00 12 /run/steadfast/pulse-0", False),
        ("7f00-7f01 rw-s 00000000 fe:00 12 /run/steadfast/pulse-01", False),
        ("7f00-7f01 rw-p 00000000 00:00 0 \n7f02-7f03 r-xp 0 fe:00 9 /usr/bin/python3.11", False),
        ("", False),
    ],
    ids=["a rank", "its agent", "another file", "another process", "gone"],
)
def test_a_rank_is_who_writes_the_pulse(maps: str, expected: bool) -> None:
    assert writes_pulse(maps) == expected
