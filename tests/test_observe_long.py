"""Long inputs: nothing that reads maps holds a matrix."""

import clearhead as ch
from calls_made import random
from clearhead.observe.calls import Call
from clearhead.observe.numbers.pairs import top_pairs, top_received
from clearhead.observe.numbers.rollout import rollout
from clearhead.observe.numbers.similarity import similarity
from peak import Peak

N = 3_000


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
