"""Long inputs: nothing that reads maps holds a matrix."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import clearhead as ch
from calls_made import random
from clearhead.observe.calls import Call
from clearhead.observe.numbers.pairs import top_pairs, top_received
from clearhead.observe.numbers.rollout import rollout
from clearhead.observe.numbers.similarity import similarity

N = 3_000


class Peak(TorchDispatchMode):
    """The largest tensor, in elements, that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor) and x.numel():
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_pairs_rollout_and_similarity_hold_no_matrix():
    A = ch.Softmax(ch.causal() & ch.window(64))(random(1, 1, N, 8), random(1, 1, N, 8, seed=1))
    calls = [Call(name, "self", "test", A.full_shape, ch.kernels.Statistics(), map=A) for name in "ab"]
    with Peak() as tracker:
        assert len(top_pairs(calls[0], 5)) == 5
        assert len(top_received(calls[0], 5)) == 5
        assert rollout(calls, -1).shape == (1, N)
        assert rollout(calls, pool=8).shape == (1, 8, N)
        assert similarity(calls, range(0, N, 10)).shape == (2, 2)
    assert tracker.largest < N * N / 8
