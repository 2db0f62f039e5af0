"""Generated files are what their generators write today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from steadfast_operator.api.crd import RESOURCES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("plural", RESOURCES)
def test_a_custom_resource_definition_is_up_to_date(plural: str) -> None:
    command = [sys.executable, "-m", "steadfast_operator.api.crd", plural]
    generated = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert generated == (ROOT / f"crds/{plural}.yaml").read_text(), "run `make generate`"


def test_every_custom_resource_definition_is_generated() -> None:
    assert {path.stem for path in (ROOT / "crds").iterdir()} == RESOURCES.keys()
