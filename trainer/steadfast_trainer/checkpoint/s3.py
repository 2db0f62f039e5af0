"""What talking to S3 through obstore takes: the client and its options, credentials, and what its errors mean.

Only `store` uses it, and it gives the errors on. Nothing here touches obstore before the first request.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

FIRST_DELAY_SECONDS = 0.05
_ENDPOINT_NAMES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL")
_STATIC_NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_DELEGATED_NAMES = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "web_identity_token_file",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "container_credentials_relative_uri",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "container_credentials_full_uri",
}
_DELEGATED_DETAILS = {
    "AWS_ROLE_ARN": "role_arn",
    "AWS_ROLE_SESSION_NAME": "role_session_name",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "container_authorization_token_file",
}
_DENIED_CODES = {
    "AccessDenied",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidIdentityToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
CREDENTIALS_HINT = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN for temporary keys), "
    "or give the pod's service account an identity"
)


class StoreError(Exception):
    """An object store refused or failed a request; the message names the request, the place and the remedy."""


class StoreUnavailable(StoreError):
    """Errors that pass (5xx, resets, timeouts, nobody listening) did not pass before the deadline."""


class StoreDenied(StoreError):
    """No credentials, or ones that are wrong, expired or not allowed to do this."""


class BucketMissing(StoreError):
    """The bucket does not exist."""


class ObjectMissing(StoreError):
    """The bucket exists, the object does not."""


class PreconditionFailed(StoreError):
    """A conditional write lost: the object exists already, or is another one than the tag says."""


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """The connections to one bucket, shared by all its sub-prefixes."""

    name: str
    endpoint: str
    config: Mapping[str, Any] = field(repr=False)
    _clients: dict[tuple[int, int], S3Store] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def client(self, *, seconds: int, retries: int) -> S3Store:
        """A client whose requests may be silent for `seconds`; made at its first use."""
        with self._lock:
            if (seconds, retries) not in self._clients:
                self._clients[seconds, retries] = self._connect(seconds=seconds, retries=retries)
            return self._clients[seconds, retries]

    def _connect(self, *, seconds: int, retries: int) -> S3Store:
        silence = timedelta(seconds=seconds)
        return S3Store(
            self.name,
            **self.config,
            client_options={
                "allow_http": self.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=min(seconds, 5)),
                "read_timeout": silence,  # a PUT counts from its start, a GET from the last byte that came
                "timeout": timedelta(hours=1),
            },
            retry_config={
                "max_retries": retries,
                "retry_timeout": silence,
                "backoff": {
                    "init_backoff": timedelta(seconds=FIRST_DELAY_SECONDS),
                    "max_backoff": timedelta(seconds=1),
                    "base": 2,
                },
            },
        )


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why a request failed: obstore's exception read as S3 means it."""

    kind: str
    text: str
    """Without the reply's body: some stores repeat the session token in it."""

    @property
    def passes(self) -> bool:
        """Whether the same request may be answered later."""
        return self.kind == "transient"

    @classmethod
    def of(cls, error: Exception) -> Cause:
        """Read an exception of obstore."""
        story = str(error)
        found = re.search(r"(?:non-2xx status code|status): (\d{3})", story)
        status = int(found[1]) if found else None
        code = _element(story, "Code")
        text = " ".join(str(part) for part in (status, code, _element(story, "Message")) if part)
        return cls(kind=_kind(error, status=status, code=code), text=text or _transport(story))


def _kind(error: Exception, *, status: int | None, code: str) -> str:
    if code == "NoSuchBucket":
        return "bucket"
    if status in {401, 403} or code in _DENIED_CODES:
        return "denied"
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return "precondition"
    if isinstance(error, FileNotFoundError):
        return "object"
    if "normally indicates an incorrectly configured region" in str(error):
        return "other"
    return "transient" if status is None or status >= 500 or status in {408, 429} else "other"


def _element(story: str, name: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", story)
    return found[1] if found else ""


def _transport(story: str) -> str:
    """What went wrong below HTTP, from obstore's debug text."""
    if "TimedOut" in story or "Elapsed" in story:
        return "the store did not answer in time"
    found = re.search(r"(InvalidCertificate\(\w+|InvalidMessage|InvalidContentType)", story)
    if found:
        return f"TLS failed ({found[1].replace('(', ': ')})"
    found = re.search(r'message: "([^"]+)"', story) or re.search(r'\w+Error\(\s*"([^"]+)"', story)
    return (found[1] if found else story.partition("\n")[0]).lower() or "no reply"


def endpoint_of(env: Mapping[str, str]) -> str:
    """Where the store is, for messages and for the client; AWS where nothing else is said."""
    given = next((env[name] for name in _ENDPOINT_NAMES if env.get(name)), "")
    return given.rstrip("/") or f"https://s3.{_region(env)}.amazonaws.com"


def _region(env: Mapping[str, str]) -> str:
    return env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"


def client_config(env: Mapping[str, str], *, bucket: str) -> dict[str, Any]:
    """Options of obstore's S3 client.

    Raises:
        StoreDenied: `env` holds no credentials.
    """
    config: dict[str, Any] = {
        "region": _region(env),
        "endpoint": endpoint_of(env),
        "virtual_hosted_style_request": False,
        "skip_signature": False,  # said aloud: obstore also reads AWS_SKIP_SIGNATURE of the process
        "disable_bulk_delete": True,  # plain DELETE is what every S3 has
    }
    if not any(env.get(name) for name in _ENDPOINT_NAMES):
        config |= {
            "virtual_hosted_style_request": True,
            "endpoint": f"https://{bucket}.s3.{_region(env)}.amazonaws.com",
        }
    return config | _credentials(env)


def _credentials(env: Mapping[str, str]) -> dict[str, Any]:
    if all(env.get(name) for name in _STATIC_NAMES):
        key_id, secret = (env[name] for name in _STATIC_NAMES)
        keys = {
            "access_key_id": key_id,
            "secret_access_key": secret,
            "token": env.get("AWS_SESSION_TOKEN") or None,
            "expires_at": None,
        }
        # A provider, not plain options: those would be mixed with the AWS_SESSION_TOKEN of the process.
        return {"credential_provider": lambda: keys}
    if any(env.get(name) for name in _DELEGATED_NAMES):
        names = _DELEGATED_NAMES | _DELEGATED_DETAILS
        return {option: env[name] for name, option in names.items() if env.get(name)}
    missing = ", ".join(name for name in _STATIC_NAMES if not env.get(name))
    raise StoreDenied(f"no credentials for the object store: {missing} not set; {CREDENTIALS_HINT}")
