"""Sight: what the attention of any PyTorch model does, in numbers, alarms and pictures, at fused speed."""

from clearhead.observe.calls import Call, Seen
from clearhead.observe.watch import watch

__all__ = ["Call", "Seen", "watch"]
