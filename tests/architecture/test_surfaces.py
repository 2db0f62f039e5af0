"""What others build on, as golden files: to widen, narrow or rename any of it is a visible diff.

`make golden` accepts everything as it is now; the diff of tests/golden/surfaces is for review.
"""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from architecture.project import ROOT, imported_modules, python_files, tree
from steadfast_cli import run, validate
from steadfast_cli.__main__ import main
from steadfast_contract import CONTRACT_VERSION, checkpoints, folder, heartbeat
from steadfast_contract.env import RankEnv, WorkerEnv
from steadfast_contract.exits import CLASS_OF_CODE, ExitCode, FailureClass, RankReport
from steadfast_operator.api.crd import RESOURCES, custom_resource_definition
from steadfast_operator.api.reasons import ConditionType, Reason

FOLDER = ROOT / "tests/golden/surfaces"
A_WORKER = WorkerEnv(
    job="ns/job", job_uid="uid", worker="w", attempt=1, node_rank=0, num_workers=1, ranks_per_worker=1, port=0,
    host="127.0.0.1",
)  # fmt: skip

ASK_FOR_METRICS = """
import asyncio, os, sys
import aiohttp
from steadfast_agent.probes import Probes
from steadfast_agent.supervise import Gang
from steadfast_contract.env import WorkerEnv
from steadfast_contract.folder import pulse_path
from steadfast_contract.heartbeat import PULSE_BYTES, AgentPhase, Pulse, pack_pulse

async def ask():
    worker = WorkerEnv.from_mapping(os.environ)
    page = bytearray(PULSE_BYTES)
    pack_pulse(Pulse(), into=memoryview(page), sequence=0)
    pulse_path(worker.folder, local_rank=0).write_bytes(page)
    probes = Probes(worker, Gang(worker, on_line=print), phase=lambda: AgentPhase.RUNNING, master="")
    address = await probes.serve()
    async with aiohttp.ClientSession() as http, http.get(f"http://{address}/metrics") as reply:
        print(await reply.text(), flush=True)
    os._exit(0)

asyncio.run(ask())
"""


def environment(_: Path) -> Iterator[str]:
    agent, rank = A_WORKER.to_mapping(), RankEnv().to_mapping()
    spelled = {name for file in python_files("operator", "trainer") for name in names_in(file)}
    yield from (f"agent {name}" for name in agent)
    yield from (f"rank {name}" for name in rank)
    yield from (f"other {name}" for name in sorted(spelled - agent.keys() - rank.keys()))


def names_in(file: str) -> list[str]:
    """Our environment variables that a module spells."""
    return re.findall(r"\bSTEADFAST_[A-Z_]+\b", (ROOT / file).read_text())


def exit_codes(_: Path) -> Iterator[str]:
    for code in ExitCode:
        yield f"rank {code.value} {code.name} {CLASS_OF_CODE.get(code, '-')}"
    yield f"steadfast run {run.FAILED} FAILED"
    yield f"steadfast run {run.INTERRUPTED} INTERRUPTED"
    yield f"steadfast run, validate {validate.INVALID} INVALID"


def failure_classes(_: Path) -> Iterator[str]:
    yield from FailureClass


def conditions(_: Path) -> Iterator[str]:
    yield from (f"condition {name}" for name in ConditionType)
    yield from (f"reason {name}" for name in Reason)


def cli(_: Path) -> Iterator[str]:
    yield from commands(main, main.make_context("steadfast", [], resilient_parsing=True))


def commands(command: click.Command, context: click.Context) -> Iterator[str]:
    yield context.command_path
    for parameter in command.params:  # every command has --help, too
        yield f"{context.command_path} {spelling(parameter, context)}"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, child.make_context(name, [], parent=context, resilient_parsing=True))


def spelling(parameter: click.Parameter, context: click.Context) -> str:
    if isinstance(parameter, click.Option):
        value = "" if parameter.is_flag else f" {parameter.make_metavar(context)}"
        text = "/".join((*parameter.opts, *parameter.secondary_opts)) + value
    else:
        text = parameter.make_metavar(context)
    traits = {"required": parameter.required, "repeatable": getattr(parameter, "multiple", False)}
    return " ".join((text, *(f"({trait})" for trait, holds in traits.items() if holds)))


def metrics(tmp_path: Path) -> Iterator[str]:
    environ = A_WORKER.to_mapping() | {"STEADFAST_FOLDER": str(tmp_path)}
    command = [sys.executable, "-c", ASK_FOR_METRICS]
    text = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for name, labels in re.findall(r"^(\w+)\{(.*)\} \S+$", text, re.MULTILINE):
        yield f"{types[name]} {name} by {', '.join(re.findall('([a-z]+)=', labels))}"
    for file in python_files("operator", "trainer"):
        if any(module.startswith("prometheus_client") for module in imported_modules(tree(file))):
            yield f"defined in {file}"


def checkpoint_layout(_: Path) -> Iterator[str]:
    yield f"format version {checkpoints.FORMAT_VERSION}"
    yield from (checkpoints.LATEST, checkpoints.LEASE)
    yield checkpoints.manifest_key(step=120, attempt=3)
    yield checkpoints.shard_key(step=120, attempt=3, rank=0, world_size=4)
    for document in (checkpoints.Latest, checkpoints.Lease, checkpoints.Manifest, checkpoints.Shard):
        yield from fields_of(document)


def messages(_: Path) -> Iterator[str]:
    yield f"contract version {CONTRACT_VERSION}"
    for message in (heartbeat.AgentStatus, heartbeat.Pulse, heartbeat.StepRecord, RankReport):
        yield from fields_of(message)
    yield from (f"AgentPhase {phase}" for phase in heartbeat.AgentPhase)
    yield from (f"Phase {phase.value} {phase.name}" for phase in heartbeat.Phase)


def fields_of(kind: Any) -> list[str]:
    return [f"{kind.__name__}.{field.name}: {field.type}" for field in fields(kind)]


def worker_folder(_: Path) -> Iterator[str]:
    for name, path in inspect.getmembers(folder, inspect.isfunction):
        local_rank = {"local_rank": 0} if "local_rank" in inspect.signature(path).parameters else {}
        yield f"{name.removesuffix('_path')} {path('', **local_rank)}"


def custom_resource(_: Path) -> Iterator[str]:
    for plural in RESOURCES:
        definition = custom_resource_definition(plural)["spec"]
        for version in definition["versions"]:
            name = f"{definition['group']}/{version['name']} {definition['names']['kind']}"
            yield from (f"{name}{line}" for line in nodes(version["schema"]["openAPIV3Schema"], ""))


def nodes(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Paths with their types; what is required, what can be chosen, and defaults of plain values."""
    kind = "integer or string" if schema.get("x-kubernetes-int-or-string") else schema["type"]
    default = f" = {json.dumps(schema['default'])}" if "default" in schema and kind != "object" else ""
    choice = f" of {', '.join(schema['enum'])}" if "enum" in schema else ""
    yield f"{path}: {kind}{choice}{default}"
    for name, part in schema.get("properties", {}).items():
        mark = "" if name in schema.get("required", []) else "?"
        yield from nodes(part, f"{path}.{name}{mark}")
    for keyword, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if keyword in schema:
            yield from nodes(schema[keyword], f"{path}{mark}")


SURFACES: dict[str, Callable[[Path], Iterator[str]]] = {
    surface.__name__: surface
    for surface in (
        checkpoint_layout, cli, conditions, custom_resource, environment, exit_codes, failure_classes, messages,
        metrics, worker_folder,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", SURFACES)
def test_a_frozen_surface_is_as_it_was_accepted(name: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    lines = list(SURFACES[name](tmp_path))
    golden = FOLDER / f"{name}.txt"
    if pytestconfig.getoption("--update-golden"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text("\n".join(lines) + "\n")
    assert golden.read_text().splitlines() == lines, "others build on this: if it is meant, run `make golden`"


def test_every_golden_surface_is_compared() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(SURFACES)
