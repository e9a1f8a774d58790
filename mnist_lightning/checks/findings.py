"""What checks found, in one process or in many, as lines to read."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from mnist_lightning.errors import InputError

SAME = ("versions", "data")  # what must be the same in all processes
HOSTS_NAMED = 4  # on a line; a large allocation has hundreds


class Finding(NamedTuple):
    """What a check found in one process."""

    text: str
    ok: bool = True
    free: tuple[int, ...] = ()  # bytes; apart from the text, since they are never quite the same in two processes


class Report(NamedTuple):
    """What one process found."""

    rank: int
    host: str
    findings: dict[str, Finding]


def merge(reports: Sequence[Report]) -> list[tuple[str, Finding]]:
    """Return each check's name and finding; where the processes differ, each of their findings and who made it."""
    merged = []
    for name in reports[0].findings:
        groups: dict[tuple[str, bool], list[Report]] = {}
        for report in reports:
            groups.setdefault(report.findings[name][:2], []).append(report)
        differ = name in SAME and sum(ok for _, ok in groups) > 1
        for (text, ok), members in groups.items():
            least = [min(sizes) for sizes in zip(*(member.findings[name].free for member in members), strict=True)]
            if least:
                at_least = "at least " if len(members) > 1 else ""
                text += f"; {at_least}{' and '.join(map(size, least))} free"
            if ok and differ:
                text += "; must be the same everywhere"
            if len(members) < len(reports):
                text += f" ({_who(members)})"
            elif len(reports) > 1:
                text += f" ({len(reports)} ranks)"
            merged.append((name, Finding(text, ok and not differ)))
    return merged


def line(name: str, finding: Finding) -> str:
    """Return what is printed of a finding.

    >>> line("data", Finding("train.csv is missing", ok=False))
    'FAIL  data        train.csv is missing'
    """
    return f"{'ok' if finding.ok else 'FAIL':<4}  {name:<10}  {finding.text}"


def _who(reports: Sequence[Report]) -> str:
    """Name ranks by their hosts, such as ``ranks 0-3 on a, rank 5 on b``."""
    hosts: dict[str, list[int]] = {}
    for report in reports:
        hosts.setdefault(report.host, []).append(report.rank)
    named = [f"{_ranks(ranks)} on {host}" for host, ranks in list(hosts.items())[:HOSTS_NAMED]]
    more = f" and on {len(hosts) - HOSTS_NAMED} more" if len(hosts) > HOSTS_NAMED else ""
    return ", ".join(named) + more


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    is_range = ranks[-1] - ranks[0] == len(ranks) - 1
    return f"ranks {ranks[0]}-{ranks[-1]}" if is_range else f"ranks {', '.join(map(str, ranks))}"


def one_line(error: Exception) -> str:
    """Return an error's message in one line, with its kind where it is not meant for the user."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return textwrap.shorten(f"{kind}{error}", 500, placeholder=" ...")


def size(number: int) -> str:
    """Return a number of bytes for people, rounded down.

    >>> size(2**31 - 1), size(100 * 2**20)
    ('1.9 GiB', '100 MiB')
    """
    return f"{number * 10 // 2**30 / 10} GiB" if number >= 2**30 else f"{number // 2**20} MiB"
