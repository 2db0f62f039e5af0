"""Requests to the Kubernetes API server as plain JSON: `pod_cache.py` and `kube.py` make them.

Raw, because typed objects cost twenty times the time. Every failure is a `ClusterError`, every request has a deadline.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from steadfast_operator.shell.ports import ClusterError

REQUEST_SECONDS = 10.0

Object = dict[str, Any]


class RefusedError(ClusterError):
    """The API server answered, with a refusal."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApiServer:
    """One API server, with the credentials of `client`."""

    def __init__(self, api_client: Any, *, request_seconds: float = REQUEST_SECONDS) -> None:
        self._client, self._request_seconds = api_client, request_seconds

    @classmethod
    async def connect(cls) -> ApiServer:
        """With the pod's service account; outside a cluster as kubectl would."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        return cls(client.ApiClient(configuration))

    @property
    def configuration(self) -> Any:
        """The kubernetes client's configuration."""
        return self._client.configuration

    async def call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None
    ) -> Object:
        """One request; returns the answer's JSON.

        Raises:
            RefusedError: the answer is a refusal.
            ClusterError: there was no answer in time.
        """
        deadline = aiohttp.ClientTimeout(total=self._request_seconds)
        try:
            response = await self._send(method, path, query=query or {}, body=body, deadline=deadline)
            async with response:
                text = await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ClusterError(f"{method} {path}: {type(error).__name__}: {error}") from error
        return _decoded(text, status=response.status, request=f"{method} {path}")

    async def watch(self, path: str, *, query: Mapping[str, str], seconds: int) -> AsyncIterator[Object]:
        """Events of a watch that the server ends after `seconds`; a connection that is silent for longer is given up.

        Raises:
            RefusedError: the watch was refused, or ended by an error: 410 means that the version is too old.
            ClusterError: the connection broke.
        """
        query = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        # A half-open connection never ends by itself, and the server's end may never arrive.
        deadline = aiohttp.ClientTimeout(total=seconds + self._request_seconds, sock_connect=self._request_seconds)
        try:
            response = await self._send("GET", path, query=query, deadline=deadline)
            async with response:
                if response.status != 200:
                    _decoded(await response.text(), status=response.status, request=f"watch {path}")
                async for line in response.content:
                    event = _decoded(line.decode(), status=200, request=f"watch {path}")
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise RefusedError(status.get("code", 500), f"watch {path}: {status.get('message', '')}")
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError) as error:
            raise ClusterError(f"watch {path}: {type(error).__name__}: {error}") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()

    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        deadline: aiohttp.ClientTimeout,
        body: Object | None = None,
    ) -> aiohttp.ClientResponse:
        patch = method == "PATCH"
        headers = {"Accept": "application/json"} | ({"Content-Type": "application/merge-patch+json"} if patch else {})
        serialized = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await self._client.call_api(*serialized, _request_timeout=deadline)
        response: aiohttp.ClientResponse = answer.response
        return response


def _decoded(text: str, *, status: int, request: str) -> Object:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = {"message": text[:200]}
        status = status if status >= 400 else 502
    if status >= 400:
        raise RefusedError(status, f"{request}: {status}: {content.get('message', '')}")
    result: Object = content
    return result
