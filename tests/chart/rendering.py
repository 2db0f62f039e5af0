"""The chart as the real helm renders it, without a cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any

import yaml

from testbed.paths import BIN, ROOT
from testbed.programs import BUILDS, stored

CHART = ROOT / "charts/steadfast"
NAMESPACE = "steadfast-system"
PROFILES = "steadfast.dev/v1alpha1/ClusterTrainingProfile"

Object = dict[str, Any]


@dataclass(frozen=True)
class Helm:
    """The program."""

    path: str

    def run(self, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        """Look at the return code yourself."""
        command = [self.path, *arguments, *(["--values=-"] if values else [])]
        text = json.dumps(values) if values else None
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def template(self, values: Object | None = None, *flags: str) -> subprocess.CompletedProcess[str]:
        """A release `steadfast`, hooks included."""
        place = (f"--namespace={NAMESPACE}", "--kube-version=1.36.0")
        return self.run("template", "steadfast", str(CHART), *place, *flags, values=values)

    def render(self, values: Object | None = None, *flags: str) -> list[Object]:
        """Every object of it."""
        done = self.template(values, *flags)
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]


def find_helm() -> str | None:
    """The test bed's, running or in its cache, or the machine's own."""
    build = next(each for each in BUILDS if "helm" in each.names)
    there = (str(path) for path in (BIN / "helm", stored(build)) if path.exists())
    return next(there, None) or shutil.which("helm")


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    """The only one of its kind, or the one of that name."""
    (found,) = (each for each in of_kind(objects, kind) if name in ("", each["metadata"]["name"]))
    return found


def nested(path: str, value: Any) -> Object:
    """Values with one set, by its dotted path."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value  # type: ignore[no-any-return]
