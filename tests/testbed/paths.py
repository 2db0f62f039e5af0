"""Where the test bed keeps things: what is running under one folder, what is worth keeping under another.

Both must be on one disk: nodes are hard-linked copies of the golden container store.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODES = ("node1", "node2", "node3")


class BedError(Exception):
    """The test bed cannot do what was asked; the message says why in one line."""


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


CACHE = _folder("STEADFAST_CACHE", "~/.cache/steadfast") / "testbed"
"""Survives `down`: programs, images, the golden container store."""
STATE = _folder("STEADFAST_TESTBED", "~/.local/state/steadfast/testbed")
"""Everything of the running bed; `down` deletes it."""
KUBECONFIG = STATE / "kubeconfig"
BIN = STATE / "bin"
LOGS = STATE / "logs"
PKI = STATE / "pki"


def node_folder(node: str) -> Path:
    return STATE / "nodes" / node


def template(name: str, **values: object) -> str:
    """A file of templates/, its `{{name}}` replaced."""
    text = (HERE / "templates" / name).read_text()
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", str(value))
    if "{{" in text:
        raise BedError(f"templates/{name}: unfilled {text[text.index('{{') :][:40]!r}")
    return text


def write(path: Path, text: str, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def free_gb() -> float:
    return shutil.disk_usage(next(path for path in (STATE, *STATE.parents) if path.exists())).free / 1e9
