"""The chart's roles give the operator exactly what it asks for: every request of its life, compared with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

from contract.test_cluster import OnKubernetes, on_kubernetes
from contract.test_operator import JOB, a_site
from core_builders import a_record
from steadfast_contract.exits import ExitCode
from steadfast_operator.core.attempts import HISTORY
from steadfast_operator.shell.kube import KubeCluster

TEMPLATES = Path(__file__).parents[2] / "charts/steadfast/templates"
REQUEST = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+(?:/namespaces/[^/]+)?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/?]+))?(?P<sub>/[a-z]+)?(?:\?(?P<query>.*))?"
)
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}

Right = tuple[str, str, str]
"""Group, resource, verb."""


def right(method: str, path: str) -> Right:
    """What a request needs."""
    match = REQUEST.fullmatch(path)
    assert match, path
    reading = "get" if match["name"] else "watch" if "watch=true" in (match["query"] or "") else "list"
    return match["group"] or "", match["plural"] + (match["sub"] or ""), VERBS.get(method, reading)


def given() -> set[Right]:
    """What the templates of the operator's roles say; they hold no expressions."""
    jobs = re.search(r'define "steadfast.jobRules" -}}\n(.*?){{- end', (TEMPLATES / "_helpers.tpl").read_text(), re.S)
    cluster = re.search(r"rules:\n(- .*?){{", (TEMPLATES / "rbac.yaml").read_text(), re.S)
    assert jobs, "the template jobRules is gone"
    assert cluster, "the cluster role is gone"
    return {
        (group, resource, verb)
        for rule in yaml.safe_load(jobs[1]) + yaml.safe_load(cluster[1])
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def noting(asked: set[Right]) -> Callable[[str, str], None]:
    return lambda method, path: asked.add(right(method, path))


async def test_the_operator_asks_for_exactly_what_the_chart_s_roles_give() -> None:
    asked: set[Right] = set()
    async with a_site(steps=60, **{"spec.ttlSecondsAfterFinished": 1}) as site:
        site.server.refuse = noting(asked)
        for attempt, worker in enumerate(("moe-7e1f5-0", "moe-7e1f5-2"), start=1):
            await site.until(lambda attempt=attempt: site.status.get("attempt") == attempt)
            await site.until_state("Running")
            site.kubelet.end(worker, code=ExitCode.USER_ERROR)
        await site.until(lambda: JOB not in site.server.objects)
    async with on_kubernetes() as place:
        place.server.refuse = noting(asked)
        await outlive_records(place)
    assert asked == given()


async def outlive_records(place: OnKubernetes) -> None:
    """A record is read by the next operator, and deleted when it is too old."""
    await place.cluster.create_record(a_record(2))
    assert isinstance(place.cluster, KubeCluster)
    cluster = place.cluster
    fresh = KubeCluster(cluster.key, server=cluster._server, pods=cluster._pods, agents=cluster._agents)
    assert await fresh.fetch_record(1) is not None
    assert await fresh.create_record(replace(a_record(2), number=HISTORY + 1))
    assert len(place.server.find("configmaps")) == 1
