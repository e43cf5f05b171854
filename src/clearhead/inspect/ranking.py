"""Findings in the order in which they are worth reading."""

import math
from collections.abc import Sequence
from itertools import zip_longest

from clearhead.observe import Finding


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """Alarms before notes; of each kind the worst of every rule, then the second worst of every rule, and so on."""
    rules: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=_excess, reverse=True):
        rules.setdefault(finding.rule, []).append(finding)
    dealt = [finding for turn in zip_longest(*rules.values()) for finding in turn if finding is not None]
    return sorted(dealt, key=lambda finding: finding.severity != "alarm")


def _excess(finding: Finding) -> float:
    """How many times beyond its threshold a value is, on either side, as a logarithm."""
    value, threshold = abs(finding.value), abs(finding.threshold)
    if not math.isfinite(value) or not value or not threshold:
        return math.inf
    return abs(math.log(value / threshold))
