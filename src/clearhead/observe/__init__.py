"""Sight: what the attention of any PyTorch model does, in numbers, alarms and pictures, at fused speed.

    with watch(model) as seen:                   what every head does, while the model runs
        model(**batch)
    print(seen); check(seen)                     a table; what is wrong, in sentences
    rollout(seen), top_pairs(seen[0]), similarity(seen[0]), head_importance(model, batches, loss)
    AttentionMonitor(model)                      the same through a training, with remedies that act
    verify(module, x)                            any implementation of attention, held to the laws

The callbacks are resolved when first used, since they need the trainers that they are for.
"""

from typing import TYPE_CHECKING, Any

from clearhead.errors import attribute
from clearhead.observe.calls import Call, Seen
from clearhead.observe.heads import Baseline, rank_residual
from clearhead.observe.health.remedies import LowerLearningRate, QKClip, StopWithLastGood, entropy_floor
from clearhead.observe.health.reparam import qk_norm, sigma_reparam
from clearhead.observe.health.rules import RULES, Finding, Rule, check
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.tensorboard import TensorBoard
from clearhead.observe.numbers.importance import Importance, head_importance
from clearhead.observe.numbers.pairs import top_pairs, top_received
from clearhead.observe.numbers.rollout import rollout
from clearhead.observe.numbers.similarity import similarity
from clearhead.observe.verifying.verify import Verdict, verify
from clearhead.observe.watching.watch import watch

if TYPE_CHECKING:
    from clearhead.observe.monitoring.lightning_callback import LightningAttentionMonitor as LightningAttentionMonitor
    from clearhead.observe.monitoring.trainer_callback import HuggingFaceAttentionMonitor as HuggingFaceAttentionMonitor

_HOME = {
    "HuggingFaceAttentionMonitor": "clearhead.observe.monitoring.trainer_callback",
    "LightningAttentionMonitor": "clearhead.observe.monitoring.lightning_callback",
}

__all__ = [
    "RULES",
    "AttentionMonitor",
    "Baseline",
    "Call",
    "Finding",
    "HuggingFaceAttentionMonitor",
    "Importance",
    "LightningAttentionMonitor",
    "LowerLearningRate",
    "QKClip",
    "Rule",
    "Seen",
    "StopWithLastGood",
    "TensorBoard",
    "Verdict",
    "check",
    "entropy_floor",
    "head_importance",
    "qk_norm",
    "rank_residual",
    "rollout",
    "sigma_reparam",
    "similarity",
    "top_pairs",
    "top_received",
    "verify",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clearhead.observe' has no attribute {name!r}")
    value = attribute(_HOME[name], name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
