"""The doctor's findings, as text and as JSON."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass


class Status(enum.StrEnum):
    """Says how much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Things work without it, or only some need it."""
    WRONG = "wrong"
    """Something will fail; the exit code is 1."""


@dataclass(frozen=True)
class Finding:
    """Says what was found about one thing."""

    status: Status
    topic: str
    """The thing, in a word or two."""
    what: str
    """What was found, in one line."""
    remedy: str = ""
    """What to do about it; mostly a command."""


def ok(topic: str, what: str) -> Finding:
    return Finding(Status.OK, topic, what)


def note(topic: str, what: str, remedy: str = "") -> Finding:
    return Finding(Status.NOTE, topic, what, remedy)


def wrong(topic: str, what: str, remedy: str = "") -> Finding:
    return Finding(Status.WRONG, topic, what, remedy)


def guarded(topic: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds, and what it raises as a finding, so that one broken part does not hide the others."""
    try:
        yield from look()
    except Exception as error:  # A broken installation or a damaged file may raise anything.
        yield wrong(topic, f"{type(error).__name__}: {' '.join(str(error).split())}")


def as_text(findings: Sequence[Finding]) -> str:
    """Return a line per finding with its remedy below, and the counts at the end."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<5} {finding.topic:<{width}} {finding.what}")
        if finding.remedy:
            lines.append(f"{'':<5} {'':<{width}} -> {finding.remedy}")
    counts = {status: sum(finding.status == status for finding in findings) for status in Status}
    lines.append(f"{counts[Status.OK]} fine, {counts[Status.NOTE]} to note, {counts[Status.WRONG]} wrong")
    return "\n".join(lines)


def findings_json(findings: Sequence[Finding]) -> str:
    """Return `{"ok": BOOL, "findings": [{"status", "topic", "what", "remedy"}, ...]}`."""
    content = {"ok": is_fine(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def is_fine(findings: Sequence[Finding]) -> bool:
    """Tells whether nothing is wrong."""
    return all(finding.status != Status.WRONG for finding in findings)
