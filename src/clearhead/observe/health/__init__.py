"""What is wrong with a head: rules, each with a threshold, a paper and a sentence. What acts on it: remedies."""

from clearhead.observe.health.rules import (
    RULES,
    DormantHead,
    EntropyCollapse,
    EntropyFall,
    Finding,
    LogitExplosion,
    NonFinite,
    RankCollapse,
    Rule,
    SinkHead,
    UniformHead,
    check,
)

__all__ = [
    "RULES",
    "DormantHead",
    "EntropyCollapse",
    "EntropyFall",
    "Finding",
    "LogitExplosion",
    "NonFinite",
    "RankCollapse",
    "Rule",
    "SinkHead",
    "UniformHead",
    "check",
]
