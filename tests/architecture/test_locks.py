"""Lock files: nothing is installed that was not seen before, from whatever index."""

from __future__ import annotations

import re

import pytest

from architecture.project import ROOT

FOLDER = ROOT / "requirements"
LOCKS = sorted(path.name for path in FOLDER.glob("*.lock"))
REQUIREMENT = re.compile(r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>\S+)(?: ; [^#]+?)?(?P<hashes>(?: --hash=\S+)*)")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements(lock: str) -> list[str]:
    """One line for each requirement, without comments."""
    lines = (FOLDER / lock).read_text().replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if not line.strip().startswith("#") and line.strip()]


def versions(lock: str) -> dict[str, str]:
    found = [REQUIREMENT.fullmatch(line) for line in requirements(lock)]
    return {match["name"]: match["version"] for match in found if match}


def test_there_is_a_lock_for_everybody() -> None:
    assert LOCKS == ["cli.lock", "dev.lock", "operator.lock", "trainer.lock", "uv.lock"]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_has_one_version_and_a_hash(lock: str) -> None:
    assert requirements(lock)
    for line in requirements(lock):
        match = REQUIREMENT.fullmatch(line)
        assert match, f"no plain requirement: {line[:80]}"
        assert match["hashes"], f"{match['name']} has no hash"
        assert all(HASH.fullmatch(hash_) for hash_ in match["hashes"].split())


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_server(lock: str) -> None:
    text = (FOLDER / lock).read_text()
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("lock", ["cli.lock", "operator.lock", "trainer.lock"])
def test_what_is_shipped_is_what_was_tested(lock: str) -> None:
    tested = versions("dev.lock")
    other = {name: (version, tested.get(name)) for name, version in versions(lock).items()}
    assert {name: pair for name, pair in other.items() if pair[0] != pair[1]} == {}, "run `make lock`"
