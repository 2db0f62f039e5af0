"""The operator's options: read once from its environment, then frozen. `__main__.py` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAMESPACE = re.compile("[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an administrator may choose."""

    namespace: str | None = None
    """Look after jobs of this namespace only; None: of all."""
    operator_namespace: str | None = None
    """Where the operator's own pods are; None: it runs outside the cluster."""
    metrics_namespaces: tuple[str, ...] = ()
    """Namespaces that may read workers' metrics; empty: all."""
    host: str = "0.0.0.0"
    port: int = 8080
    """Where health and metrics are served."""
    watch_seconds: int = 120
    """Longest life of one watch; a broken connection is noticed after it at the latest."""
    log_level: str = "INFO"

    @classmethod
    def from_mapping(cls, env: Mapping[str, str]) -> Settings:
        """Read the environment; what is not set keeps its default.

        Raises:
            ValueError: a variable has no sense; the message names it.
        """
        level = env.get("STEADFAST_LOG_LEVEL", cls.log_level).upper()
        if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"STEADFAST_LOG_LEVEL={level!r} is none of DEBUG, INFO, WARNING, ERROR")
        return cls(
            namespace=env.get("STEADFAST_NAMESPACE") or None,
            operator_namespace=env.get("STEADFAST_OPERATOR_NAMESPACE") or env.get("POD_NAMESPACE") or None,
            metrics_namespaces=_namespaces(env, "STEADFAST_METRICS_NAMESPACES"),
            host=env.get("STEADFAST_OPERATOR_HOST", cls.host),
            port=_number(env, "STEADFAST_OPERATOR_PORT", default=cls.port, least=0),
            watch_seconds=_number(env, "STEADFAST_WATCH_SECONDS", default=cls.watch_seconds, least=1),
            log_level=level,
        )


def _namespaces(env: Mapping[str, str], name: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in env.get(name, "").split(",") if part.strip())
    for wrong in (each for each in names if not _NAMESPACE.fullmatch(each)):
        raise ValueError(f"{name} holds {wrong!r}, which is no name of a namespace: write names with commas between")
    return names


def _number(env: Mapping[str, str], name: str, *, default: int, least: int) -> int:
    text = env.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text!r} is no whole number of at least {least}")
    return int(text)
