"""YAML as kubectl reads it, with the line of every field; `validate.py` calls it.

PyYAML alone takes 3e-4 for text, 1:30 for 90 and the last of two equal keys for the only one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from steadfast_operator.api.problems import Problem

Location = tuple[str | int, ...]

MAX_NODES = 100_000
"""Values in one document, aliases counted as often as they are used: more is an attack or an accident."""


class ManifestError(ValueError):
    """The text is not YAML that Kubernetes could read."""

    def __init__(self, what: str, *, remedy: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.remedy, self.line = what, remedy, line


@dataclass(kw_only=True)
class Document:
    """One document: plain JSON values, and where each was written."""

    content: Any = None
    lines: dict[Location, int] = field(default_factory=dict)
    faults: list[Problem] = field(default_factory=list)
    """Fields written twice, and numbers that JSON does not have."""

    def line(self, location: Location) -> int | None:
        """Where the value was written, or the nearest one around it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location)


class _Loader(yaml.SafeLoader):
    """The YAML 1.1 that Kubernetes reads: without dates and base 60, with 3e-4."""


_PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "map", "null", "seq", "str")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "merge", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"[-+]?(0|0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|[1-9][0-9_]*)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def read_documents(text: str) -> list[Document]:
    """The documents of a manifest; empty ones are left out, as kubectl does.

    Raises:
        ManifestError: the text is not YAML, or not YAML that is also JSON.
    """
    try:
        loader = _Loader(text)
        documents = []
        while loader.check_node():
            document = Document()
            root = loader.get_node()
            assert root is not None
            document.content = _Reader(loader, document).read(root, ())
            if document.content is not None:
                documents.append(document)
        return documents
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        remedy = "Indent with spaces" if "'\\t'" in what else "Correct the YAML there"
        raise ManifestError(f"not YAML: {what}", remedy=remedy, line=mark.line + 1 if mark else None) from error
    except yaml.YAMLError as error:
        what = str(error).replace("\n", " ")
        raise ManifestError(f"not YAML: {what}", remedy="Save the file as UTF-8 text") from error


class _Reader:
    """Turns the nodes of one document into JSON values."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self.loader, self.document = loader, document
        self.nodes = 0

    def read(self, node: yaml.Node, location: Location) -> Any:
        self.nodes += 1
        line = node.start_mark.line + 1
        # An alias of something that holds the alias ends here too.
        if self.nodes > MAX_NODES or len(location) > 64:
            raise ManifestError(f"more than {MAX_NODES} values", remedy="Write it without aliases (*name)", line=line)
        if node.tag not in _PLAIN:
            raise ManifestError(f"the tag {node.tag} means nothing to Kubernetes", remedy="Remove the tag", line=line)
        self.document.lines.setdefault(location, line)
        if isinstance(node, yaml.MappingNode):
            return dict(self._pairs(node, location))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*location, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, location)

    def _scalar(self, node: yaml.Node, location: Location) -> Any:
        try:
            value = self.loader.construct_object(node)
            node.value.encode()
        except ValueError as error:  # half a surrogate pair, a number of 5,000 digits
            line = node.start_mark.line + 1
            raise ManifestError("a value that JSON cannot hold", remedy="Write it differently", line=line) from error
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(
                location,
                node,
                what=f"{node.value} is a number that Kubernetes does not have",
                remedy="Write a finite number",
            )
            return None
        return value

    def _pairs(self, node: yaml.MappingNode, location: Location) -> Iterator[tuple[str, Any]]:
        written = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        own = {id(key) for key, _ in node.value}
        self.loader.flatten_mapping(node)
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ManifestError("a mapping has a key that is no name", remedy="Write name: value", line=line)
            self._scalar(key, location)
            here = (*location, key.value)
            if id(key) in own and here in self.document.lines and written.count(key.value) > 1:
                first = self.document.lines[here]
                self._fault(here, key, what=f"is written twice, first in line {first}", remedy="Keep one of them")
            self.document.lines[here] = line
            yield key.value, self.read(value, here)

    def _fault(self, location: Location, node: yaml.Node, *, what: str, remedy: str) -> None:
        line = node.start_mark.line + 1
        self.document.faults.append(Problem(path=path_of(location), what=what, remedy=remedy, line=line))


def path_of(location: Location) -> str:
    """As a user writes it: spec.data.streams[0].name."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
