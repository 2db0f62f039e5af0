"""Documents to train on: text files, folders of them, and two corpora that every machine has.

Used by `prepare`. The order of documents is fixed by their paths, so that the same files give the same stream.
"""

from __future__ import annotations

import gzip
import os
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

PYTHON_STDLIB = "python-stdlib"
MAN_PAGES = "man-pages"
_MAN_ROOTS = (Path("/usr/share/man"), Path("/usr/local/share/man"))
_CODE = (".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".go", ".rs", ".js", ".ts", ".java", ".sh", ".html")
_PROSE = (".md", ".rst", ".txt", ".tex", ".json", ".jsonl", ".toml", ".yaml", ".yml", ".gz")
_TEXT_SUFFIXES = frozenset(_CODE + _PROSE)
# Tests are two thirds of the standard library, are no prose of the language, and some distributions leave them out.
_STDLIB_SKIPPED = frozenset(["site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"])


class SourceError(Exception):
    """A source has nothing to read; the message says which, and what may be named instead."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The files of one source, in reading order."""

    name: str
    paths: tuple[Path, ...]


def find_corpus(source: str) -> Corpus:
    """List the files of a source: a file, a folder, `python-stdlib` or `man-pages`.

    Raises:
        SourceError: there is no such source, or no text file in it.
    """
    if source == PYTHON_STDLIB:
        paths = _stdlib_files()
    elif source == MAN_PAGES:
        folders = sorted(folder for root in _MAN_ROOTS for folder in root.glob("man*"))  # <root>/de/man1 is German
        paths = [path for folder in folders for path in _sorted_files(folder)]
    elif Path(source).is_dir():
        paths = [path for path in _sorted_files(Path(source)) if path.suffix in _TEXT_SUFFIXES]
    elif Path(source).is_file():
        paths = [Path(source)]
    else:
        raise SourceError(f"no file or folder {source!r}; a corpus is a path, {PYTHON_STDLIB} or {MAN_PAGES}")
    if not paths:
        raise SourceError(f"{source!r} holds no text file (looked for {', '.join(sorted(_TEXT_SUFFIXES))})")
    return Corpus(name=source, paths=tuple(paths))


def read_documents(corpus: Corpus, *, every: int = 1) -> Iterator[str]:
    """Text of a corpus, of each `every`-th file; what is empty or not UTF-8 text is left out."""
    for path in corpus.paths[::every]:
        text = _read_text(path)
        if text:
            yield text


def _read_text(path: Path) -> str | None:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError):
        return None
    return None if "\0" in text else text


def _stdlib_files() -> list[Path]:
    files = _sorted_files(Path(sysconfig.get_path("stdlib")), skipped=_STDLIB_SKIPPED)
    return [path for path in files if path.suffix == ".py"]


def _sorted_files(root: Path, *, skipped: Collection[str] = ()) -> list[Path]:
    """Regular files below a folder; links would read a file twice, hidden folders hold no corpus."""
    files: list[Path] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    plain = (path for path in files if path.is_file() and not path.is_symlink())
    return sorted(plain, key=lambda path: path.relative_to(root).as_posix())
