"""Maps: mechanisms, which turn queries and keys into weights, and the attention maps that they make."""

from clearhead.maps.base import Adjoint, AttentionMap
from clearhead.maps.biases import ALiBi, DistanceBias, RelativeBias, T5Bias
from clearhead.maps.cache import Cache, GrowingCache
from clearhead.maps.ring import RingCache
from clearhead.maps.softmax import Softmax, SoftmaxMap, attend, explain
from clearhead.maps.watching import is_applying, observing, unobserved

__all__ = [
    "ALiBi",
    "Adjoint",
    "AttentionMap",
    "Cache",
    "DistanceBias",
    "GrowingCache",
    "RelativeBias",
    "RingCache",
    "Softmax",
    "SoftmaxMap",
    "T5Bias",
    "attend",
    "explain",
    "is_applying",
    "observing",
    "unobserved",
]
