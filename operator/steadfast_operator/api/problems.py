"""What is wrong with a manifest, in a form that a person can act on and a program can sort."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong with a manifest. `what` and `remedy` are sentences without their full stops."""

    path: str
    """As a user writes it: spec.train.globalBatchTokens. Empty: the document as a whole."""
    what: str
    remedy: str
    source: str = ""
    line: int | None = None

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.source, self.line) if part)
        sentences = f"{self.what}. {self.remedy}{'' if self.remedy.endswith('?') else '.'}"
        return ": ".join(part for part in (place, self.path, sentences) if part)
