"""Generated files are what their generators write today."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_custom_resource_definition_is_up_to_date() -> None:
    command = [sys.executable, "-m", "steadfast_operator.api.crd"]
    generated = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert generated == (ROOT / "crds/trainingjobs.yaml").read_text(), "run `make generate`"
