"""What was found, and how it is shown."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass


class Status(enum.StrEnum):
    """How much a finding matters."""

    OK = "ok"
    NOTE = "note"
    """Works without it, or may matter to some."""
    WRONG = "wrong"
    """Something will fail; the exit code is 1."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    topic: str
    """What it is about, a word or two."""
    what: str
    """What was found, one line."""
    remedy: str = ""
    """What to do about it: mostly a command."""


def ok(topic: str, what: str) -> Finding:
    return Finding(Status.OK, topic, what)


def note(topic: str, what: str, remedy: str = "") -> Finding:
    return Finding(Status.NOTE, topic, what, remedy)


def wrong(topic: str, what: str, remedy: str = "") -> Finding:
    return Finding(Status.WRONG, topic, what, remedy)


def guarded(topic: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a look finds; what it raises is found to be wrong, so that one broken part does not hide the others."""
    try:
        yield from look()
    except Exception as error:  # whatever a broken installation or a damaged file raises
        yield wrong(topic, f"{type(error).__name__}: {' '.join(str(error).split())}")


def as_text(findings: Sequence[Finding]) -> str:
    """A line per finding, its remedy below it, and the sum at the end."""
    width = max(len(finding.topic) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<5} {finding.topic:<{width}} {finding.what}")
        if finding.remedy:
            lines.append(f"{'':<5} {'':<{width}} -> {finding.remedy}")
    counts = {status: sum(finding.status == status for finding in findings) for status in Status}
    lines.append(f"{counts[Status.OK]} fine, {counts[Status.NOTE]} to note, {counts[Status.WRONG]} wrong")
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> str:
    """`{"ok": BOOL, "findings": [{"status", "topic", "what", "remedy"}, ...]}`."""
    content = {"ok": is_fine(findings), "findings": [dataclasses.asdict(finding) for finding in findings]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def is_fine(findings: Sequence[Finding]) -> bool:
    """Whether nothing is wrong."""
    return all(finding.status != Status.WRONG for finding in findings)
