"""The operator's options."""

from __future__ import annotations

import pytest

from steadfast_operator.settings import Settings


def test_nothing_needs_to_be_set() -> None:
    assert Settings.from_mapping({"HOME": "/"}) == Settings()


def test_everything_can_be_set() -> None:
    env = {
        "STEADFAST_NAMESPACE": "research",
        "STEADFAST_OPERATOR_NAMESPACE": "steadfast",
        "STEADFAST_METRICS_NAMESPACES": "monitoring, team-a",
        "STEADFAST_OPERATOR_HOST": "127.0.0.1",
        "STEADFAST_OPERATOR_PORT": "0",
        "STEADFAST_WATCH_SECONDS": "30",
        "STEADFAST_LOG_LEVEL": "debug",
    }
    expected = Settings(
        namespace="research",
        operator_namespace="steadfast",
        metrics_namespaces=("monitoring", "team-a"),
        host="127.0.0.1",
        port=0,
        watch_seconds=30,
        log_level="DEBUG",
    )
    assert Settings.from_mapping(env) == expected


def test_the_operator_s_own_namespace_is_its_pod_s() -> None:
    assert Settings.from_mapping({"POD_NAMESPACE": "steadfast"}).operator_namespace == "steadfast"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STEADFAST_OPERATOR_PORT", "http"),
        ("STEADFAST_OPERATOR_PORT", "-1"),
        ("STEADFAST_WATCH_SECONDS", "0"),
        ("STEADFAST_LOG_LEVEL", "loud"),
        ("STEADFAST_METRICS_NAMESPACES", "monitoring other"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        Settings.from_mapping({name: value})
