"""Threads: a model that runs in several at once is seen in each as it is alone, and the choice of rows is no race."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clearhead as ch
from clearhead.observe import watch
from clearhead.observe.watching.frames import Frames

E, H, N, THREADS, ROUNDS = 16, 2, 12, 4, 6


@pytest.fixture(autouse=True)
def races():
    """One core for each thread's operations, and threads that take turns as often as they can."""
    threads, interval = torch.get_num_threads(), sys.getswitchinterval()
    torch.set_num_threads(1)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def heads(x):
    return x.unflatten(-1, (H, -1)).transpose(1, 2)


class ByHand(nn.Module):
    """Its softmax is followed through what is done to its weights, by number, before they meet the values."""

    def forward(self, x):
        q = heads(x)
        weights = (q @ q.mT / 3).float().softmax(-1)
        return ((weights * 0.5 + weights * 0.5) @ q).transpose(1, 2).flatten(2)


class Together(nn.Module):
    """Lets no thread go on before all have come."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def forward(self, x):
        if threading.current_thread() is not threading.main_thread():
            self.barrier.wait(30)
        return x


class Mixed(nn.Module):
    """Attention of each kind that is seen in a way of its own; the last takes its memory from elsewhere."""

    def __init__(self, barrier):
        super().__init__()
        self.together = Together(barrier)
        self.own = ch.nn.SelfAttention(E, H)
        self.torchs = nn.MultiheadAttention(E, H, batch_first=True)
        self.hand = ByHand()
        self.memory = Memory()

    def forward(self, x):
        x = x + self.own(self.together(x))
        x = x + self.torchs(self.together(x), x, x, need_weights=False)[0]
        x = x + self.hand(self.together(x))
        return x + self.memory(self.together(x), encoder_hidden_states=x)


class Memory(nn.Module):
    def forward(self, x, encoder_hidden_states):
        k = heads(encoder_hidden_states)
        return F.scaled_dot_product_attention(heads(x), k, k).transpose(1, 2).flatten(2)


def summary(calls):
    """What was seen, but for the number of the pass."""
    return [(c.name, c.role, c.how, c.turn, c.shape, c.rows.tolist(), c.statistics.entropy.tolist()) for c in calls]


def test_passes_in_threads_are_seen_as_if_each_were_alone():
    torch.manual_seed(0)
    model = Mixed(threading.Barrier(THREADS)).eval()
    inputs = [torch.randn(2, N - i % 2, E) for i in range(THREADS)]
    with torch.no_grad(), ThreadPoolExecutor(THREADS) as pool:
        run = torch.no_grad()(model.__call__)
        before = [model(x) for x in inputs]
        expected = []
        for x in inputs:
            with watch(model, rows=5, seed=3) as seen:
                model(x)
            expected.append(summary(seen))
        rounds = []
        for _ in range(ROUNDS):
            with watch(model, rows=5, seed=3) as seen:
                after = [each.result(60) for each in [pool.submit(run, x) for x in inputs]]
            assert all(a.equal(b) for a, b in zip(after, before, strict=True))
            passes = [summary(call for call in seen if call.step == step) for step in range(THREADS)]
            assert [call.step for call in seen] == [step for step in range(THREADS) for _ in range(4)]
            assert sorted(passes, key=str) == sorted(expected, key=str)
            rounds.append(passes)
        assert all(passes == rounds[0] for passes in rounds)  # in an order that is none of time
    assert not torch.overrides._get_current_function_mode_stack()


def test_threads_that_watch_one_model_see_their_own_passes():
    """Each as if it were alone, whenever the others begin and end."""
    torch.manual_seed(0)
    model = Mixed(threading.Barrier(THREADS)).eval()
    inputs = [torch.randn(2, N - i % 2, E) for i in range(THREADS)]

    def alone(i, x):
        with torch.no_grad(), watch(model, rows=5, seed=i) as seen:
            model(x)
        return summary(seen)

    expected = [alone(i, x) for i, x in enumerate(inputs)]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(ROUNDS):
            got = [each.result(60) for each in [pool.submit(alone, i, x) for i, x in enumerate(inputs)]]
            assert got == expected
    with watch(model) as seen:
        model(inputs[0])
    assert len(seen) == 4
    assert not torch.overrides._get_current_function_mode_stack()


def test_workers_belong_to_the_one_thread_that_watches_and_to_none_where_several_do():
    class Attends(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(heads(x), heads(x), heads(x))

    model, other, x = nn.Sequential(Attends()), nn.Sequential(Attends()), torch.randn(2, N, E)
    inside, go_on = threading.Event(), threading.Event()

    def watches():
        with watch(model) as seen:
            inside.set()
            assert go_on.wait(30)
            model(x)
        return seen

    pools = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
    with pools[0] as pool, pools[1] as workers, watch(model) as seen, watch(other) as apart:
        workers.submit(model, x).result(30)
        assert len(seen) == 1
        watching = pool.submit(watches)
        assert inside.wait(30)
        workers.submit(model, x).result(30)
        workers.submit(other, x).result(30)  # one thread alone watches this one
        model(x)
        go_on.set()
        theirs = watching.result(30)
        workers.submit(model, x).result(30)  # the other watch has ended
    assert (len(seen), len(theirs), len(apart)) == (3, 1, 1)
    assert [*seen.unseen] == [*theirs.unseen] == ["Sequential"]
    assert "several threads watch" in seen.unseen["Sequential"]
    assert apart.unseen == {}


def test_what_ends_while_another_thread_is_inside_sees_nothing_more():
    inside, go_on = threading.Event(), threading.Event()

    class Waits(nn.Module):
        def forward(self, x):
            F.scaled_dot_product_attention(heads(x), heads(x), heads(x))
            inside.set()
            go_on.wait(30)
            return F.scaled_dot_product_attention(heads(x), heads(x), heads(x))

    model, x = nn.Sequential(Waits()), torch.randn(2, N, E)
    with ThreadPoolExecutor(1) as pool:
        with watch(model) as seen:
            running = pool.submit(model, x)
            assert inside.wait(30)
        go_on.set()
        running.result(30)
        pool.submit(model, x).result(30)
        assert len(seen) == 1
        with watch(model) as again:
            pool.submit(model, x).result(30)
    assert (len(seen), len(again)) == (1, 2)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_in_several_threads_leaves_the_hooks_of_the_watch_as_they_were():
    frames = Frames(nn.Linear(2, 2), lambda module: True, lambda: None, lambda *_: None)
    hooks = torch.nn.modules.module._global_forward_hooks
    before = len(hooks)
    frames.start()
    frames.leave()
    frames.leave()
    assert len(hooks) == before
    frames.come_back()
    assert len(hooks) == before  # the other thread still runs what must not be followed
    frames.come_back()
    assert len(hooks) == before + 1
    frames.leave()
    frames.end()
    frames.come_back()
    assert len(hooks) == before
