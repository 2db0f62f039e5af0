"""Progress through shared memory and over HTTP."""

import json
import threading
from dataclasses import astuple, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadfast_contract import heartbeat
from steadfast_contract.heartbeat import (
    PULSE_BYTES,
    AgentPhase,
    AgentStatus,
    Phase,
    Pulse,
    pack_pulse,
    read_pulse,
    unpack_pulse,
)
from steadfast_trainer.pulse import PulseWriter

INTEGER, REAL = st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)
PULSES = st.builds(
    Pulse,
    **{f.name: INTEGER if isinstance(f.default, int) else REAL for f in fields(Pulse)}
    | {"phase": st.sampled_from(list(Phase)).map(int)},
)
STATUS = AgentStatus(
    worker="w-1",
    attempt=2,
    node_rank=1,
    phase=AgentPhase.RUNNING,
    master="",
    pids=(7, 8),
    progress=Pulse(step=5, loss=2.5),
)


def packed(pulse, *, sequence=0):
    page = bytearray(PULSE_BYTES)
    pack_pulse(pulse, into=memoryview(page), sequence=sequence)
    return page


@given(PULSES, st.integers(0, 2**31 - 2))
def test_a_reader_sees_what_was_packed(pulse, sequence):
    assert unpack_pulse(packed(pulse, sequence=sequence)) == pulse


def test_an_empty_page_holds_no_pulse():
    assert unpack_pulse(bytes(PULSE_BYTES)) is None


def test_a_page_of_another_contract_version_holds_no_pulse():
    page = packed(Pulse(step=1))
    page[0] += 1
    assert unpack_pulse(page) is None


def test_a_pulse_that_is_being_written_is_not_seen():
    page = packed(Pulse(step=1))
    heartbeat._HEADER.pack_into(page, 0, heartbeat.CONTRACT_VERSION, 3)
    assert unpack_pulse(page) is None


def test_a_pulse_written_while_it_is_read_is_not_seen(monkeypatch):
    """The writer strikes between the reader's two looks at the header."""
    page = packed(Pulse(step=1))
    real = heartbeat._LAYOUT

    class Interrupted:
        def unpack_from(self, buffer, offset):
            values = real.unpack_from(buffer, offset)
            monkeypatch.setattr(heartbeat, "_LAYOUT", real)
            pack_pulse(Pulse(step=2), into=memoryview(page), sequence=1)
            return values

    monkeypatch.setattr(heartbeat, "_LAYOUT", Interrupted())
    assert unpack_pulse(page) is None
    assert unpack_pulse(page) == Pulse(step=2)


def test_the_file_is_read_in_place_so_that_a_torn_read_shows(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(heartbeat, "unpack_pulse", lambda page: seen.append(type(page)) or Pulse())
    PulseWriter(tmp_path / "pulse").update(step=1)
    read_pulse(tmp_path / "pulse")
    assert seen == [memoryview]  # bytes would be a copy: its header is the same before and after


def test_no_reader_ever_sees_half_of_a_pulse(tmp_path):
    writer = PulseWriter(tmp_path / "pulse")
    done = threading.Event()

    def write():
        for n in range(3000):
            writer.update(step=n, steps=n, tokens=n, committed=n, loss=float(n), stall_seconds=float(n))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        if (pulse := read_pulse(tmp_path / "pulse")) is not None:
            same = {pulse.step, pulse.steps, pulse.tokens, pulse.committed, pulse.loss, pulse.stall_seconds}
            assert len(same) == 1
    thread.join()
    assert read_pulse(tmp_path / "pulse").step == 2999


@pytest.mark.parametrize("content", [None, b"", b"\0" * 100, bytes(PULSE_BYTES)], ids=str)
def test_a_file_without_progress_reads_as_none(tmp_path, content):
    if content is not None:
        (tmp_path / "pulse").write_bytes(content)
    assert read_pulse(tmp_path / "pulse") is None


def test_a_rank_without_a_folder_keeps_its_pulse_to_itself():
    writer = PulseWriter(None)
    writer.update(step=3)
    writer.update(loss=1.5)
    assert (writer.pulse.step, writer.pulse.loss) == (3, 1.5)


def test_the_layout_has_a_place_for_every_field():
    assert len(heartbeat._LAYOUT.unpack(bytes(heartbeat._LAYOUT.size))) == len(astuple(Pulse()))


@given(st.none() | PULSES, st.sampled_from(list(AgentPhase)), st.text(), st.lists(st.integers(1, 2**22)))
def test_a_status_round_trips(progress, phase, worker, pids):
    status = AgentStatus(
        worker=worker, attempt=1, node_rank=0, phase=phase, master="h:1", pids=tuple(pids), progress=progress
    )
    assert AgentStatus.from_json(status.to_json()) == status


def test_fields_of_a_newer_agent_are_dropped():
    data = json.loads(STATUS.to_json())
    newer = data | {"mood": "fine", "contract_version": 2, "progress": data["progress"] | {"watts": 700}}
    read = AgentStatus.from_json(json.dumps(newer))
    assert (read.contract_version, read.progress) == (2, STATUS.progress)


@pytest.mark.parametrize(
    "change",
    [{"phase": "Dreaming"}, {"progress": 7}, {"pids": 3}, {"worker": None, "progress": [1]}],
    ids=["unknown phase", "progress is a number", "pids is a number", "progress is a list"],
)
def test_what_is_no_status_is_refused(change):
    with pytest.raises(ValueError, match="not an agent status"):
        AgentStatus.from_json(json.dumps(json.loads(STATUS.to_json()) | change))


@pytest.mark.parametrize("text", ["", "[]", "null", "{}"])
def test_what_is_no_object_is_no_status(text):
    with pytest.raises(ValueError, match="not an agent status"):
        AgentStatus.from_json(text)
