"""Where the local runtime keeps everything: jobs, the embedded store, logs."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """$STEADFAST_HOME, or ~/.steadfast."""
    return Path(os.environ.get("STEADFAST_HOME") or Path.home() / ".steadfast")
