"""Attention written by hand: what ran is reported, heads as heads and samples as samples, or listed as unseen."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clearhead.observe import head_importance, watch

H, D, N = 4, 3, 5
E = H * D
SCALE = 1 / math.sqrt(D)


class Written(nn.Module):
    """An attention that is the function `attend` of queries, keys and values (B, N, H, D)."""

    def __init__(self, attend, **options):
        super().__init__()
        self.qkv = nn.Linear(E, 3 * E)
        self.attend, self.options = [attend], options
        with torch.no_grad():
            self.qkv.weight.mul_(3)

    def split(self, x):
        return [part.unflatten(-1, (H, D)) for part in self.qkv(x).chunk(3, -1)]

    def forward(self, x):
        return self.attend[0](*self.split(x), **self.options)


class Told(Written):
    """One that says how many heads it has."""

    num_heads = H


def weights_of(model, x, allowed=None):
    """The weights (B, H, N, N) by PyTorch alone, in float64."""
    q, k, _ = (part.double() for part in model.split(x))
    s = torch.einsum("bihd,bjhd->bhij", q, k) * SCALE
    return (s if allowed is None else s.masked_fill(~allowed, -math.inf)).softmax(-1)


def watched(model, *args, **options):
    """What was seen; outputs, gradients and random numbers must be the unwatched ones."""

    def run():
        torch.manual_seed(3)
        model.zero_grad()
        out = model(*args)
        out.float().square().sum().backward()
        return [out, *(p.grad for p in model.parameters()), torch.get_rng_state()]

    expected = run()
    with watch(model, **options) as seen:
        got = run()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True) if a is not None)
    return seen


def given(samples, seed=0):
    torch.manual_seed(seed)
    return torch.randn(samples, N, E)


# layouts


def einsum(q, k, v, first, second, axis=-1, order="bihd"):
    q, k, v = (torch.einsum(f"bihd->{order}", x) for x in (q, k, v))
    return torch.einsum(second, (torch.einsum(first, q, k) * SCALE).softmax(axis), v)


def matmul(q, k, v, order=(0, 2, 1, 3), dense=False):
    q, k, v = (x.permute(order) for x in (q, k, v))
    q, k, v = (x.contiguous() if dense else x for x in (q, k, v))
    return torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-1, -2)) * SCALE, -1), v)


def in_place(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    s = q @ k.mT
    s *= SCALE
    return s.softmax(dim=-1) @ v


def values_first(q, k, v):
    """As in image models: values (D, N) times the transposed weights."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    w = (q @ k.mT * SCALE).softmax(-1)
    return torch.matmul(v.mT, w.permute(0, 1, 3, 2)).mT


def batched(q, k, v, heads_first=False, how="reshape"):
    """Samples and heads in one axis."""
    order = (2, 0, 1, 3) if heads_first else (0, 2, 1, 3)
    if how == "cat":
        q, k, v = (torch.cat([x[:, :, h] for h in range(H)], dim=0) for x in (q, k, v))
    else:
        q, k, v = (x.permute(order).reshape(-1, N, D) for x in (q, k, v))
    s = torch.baddbmm(torch.zeros(1, N, N), q, k.transpose(1, 2), beta=0, alpha=SCALE)
    return torch.bmm(F.softmax(s, dim=-1), v)


def flattened(q, k, v):
    """Of four axes at the softmax, of three at the products."""
    b = len(q)
    q, k, v = (x.transpose(1, 2).reshape(b * H, N, D) for x in (q, k, v))
    w = (torch.bmm(q, k.mT).view(b, H, N, N) * SCALE).softmax(-1).view(b * H, N, N)
    return torch.bmm(w, v)


LAYOUTS = {
    "bhqk": (einsum, {"first": "bqhd,bkhd->bhqk", "second": "bhqk,bkhd->bqhd"}),
    "bnqk": (einsum, {"first": "bqnd,bknd->bnqk", "second": "bnqk,bknd->bqnd"}),
    "bihj": (einsum, {"first": "bihd,bjhd->bihj", "second": "bihj,bjhd->bihd"}),
    "hbij": (einsum, {"first": "bihd,bjhd->hbij", "second": "hbij,bjhd->bihd"}),
    "ibhj": (einsum, {"first": "bihd,bjhd->ibhj", "second": "ibhj,bjhd->ibhd"}),
    "ijbn over the second": (
        einsum,
        {"first": "ibnd,jbnd->ijbn", "second": "ijbn,jbnd->ibnd", "axis": 1, "order": "ibhd"},
    ),
    "keys before queries": (einsum, {"first": "bihd,bjhd->bhji", "second": "bhji,bjhd->bihd", "axis": 2}),
    "dots": (einsum, {"first": "... i d, ... j d -> ... i j", "second": "...ij,...jd->...id", "order": "bhid"}),
    "matmul": (matmul, {}),
    "in place": (in_place, {}),
    "values first": (values_first, {}),
    "bmm": (batched, {}),
    "flattened": (flattened, {}),
}
BY_SIZE = {
    "matmul, heads first": (matmul, {"order": (2, 0, 1, 3)}),
    "matmul, heads first, contiguous": (matmul, {"order": (2, 0, 1, 3), "dense": True}),
    "bmm, heads first": (batched, {"heads_first": True}),
    "bmm of heads one after the other": (batched, {"how": "cat"}),
}
"""Layouts without letters, which the number of heads tells."""


def check(seen, model, x, **options):
    (call,) = seen
    expected = weights_of(model, x, **options)
    assert seen.unseen == {}
    assert (call.shape, call.how, call.role) == (tuple(expected.shape), "matmul, softmax, matmul", "self")
    entropy = torch.special.entr(expected).sum(-1)
    torch.testing.assert_close(call.statistics.entropy.double(), entropy, rtol=1e-4, atol=1e-5)
    if call.padding is None:
        torch.testing.assert_close(call.statistics.received.double(), expected.sum(-2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [2, H])
@pytest.mark.parametrize("name", [*LAYOUTS, *BY_SIZE])
def test_heads_are_heads_and_samples_are_samples_in_every_layout(name, samples):
    attend, options = {**LAYOUTS, **BY_SIZE}[name]
    if samples == H and "contiguous" in name:
        pytest.skip("samples and heads are as many, and lie in memory as if they were the other way round")
    x = given(samples)
    for kind in (Told,) if name in BY_SIZE else (Told, Written):
        model = kind(attend, **options)
        check(watched(model, x), model, x)


def test_one_sample_of_two_axes_and_one_query_without_an_axis():
    torch.manual_seed(0)
    q, k = torch.randn(N, D), torch.randn(2, N, D)

    class Single(nn.Module):
        def forward(self):
            return (q @ q.mT).softmax(-1) @ q

    class Pooled(nn.Module):
        def forward(self):
            w = torch.einsum("bd,bjd->bj", q[:2], k).softmax(dim=1)
            return torch.bmm(w.unsqueeze(1), k).squeeze(1)

    for model, weights in (
        (Single(), (q.double() @ q.double().mT).softmax(-1)[None, None]),
        (Pooled(), torch.einsum("bd,bjd->bj", q[:2].double(), k.double()).softmax(-1)[:, None, None]),
    ):
        with watch(model) as seen:
            model()
        assert seen[0].shape == tuple(weights.shape)
        entropy = torch.special.entr(weights).sum(-1)
        torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["bihd,bjd->bhij", "bihd,bjd->bihj"])
def test_keys_that_all_heads_share(first):
    layout = first.partition("->")[2]

    def attend(q, k, v):
        s = torch.einsum(first, q, k[:, :, 0]) * SCALE
        return torch.einsum(f"{layout},bjd->bihd", s.softmax(-1), v[:, :, 0])

    x = given(2)
    model = Written(attend)
    q, k, _ = (part.double() for part in model.split(x))
    entropy = torch.special.entr((torch.einsum("bihd,bjd->bhij", q, k[:, :, 0]) * SCALE).softmax(-1)).sum(-1)
    seen = watched(model, x)
    torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [Told, Written])
def test_heads_and_queries_that_cannot_be_told_apart_are_unseen(kind):
    """Letters that say nothing, in a module that does not say how many heads it has."""

    def attend(q, k, v):
        s = torch.einsum("bxyd,bzd->bxyz", q, k[:, :, 0]) * SCALE
        return torch.einsum("bxyz,bzd->bxyd", s.softmax(-1), v[:, :, 0])

    seen = watched(kind(attend), given(2))
    if kind is Told:
        assert seen[0].shape == (2, H, N, N)
    else:
        assert len(seen) == 0
        assert "num_heads" in seen.unseen["Written"]


def masked(q, k, v, mask, dropout=0.0, training=False):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    s = q @ k.mT * SCALE + mask
    return F.dropout(s.softmax(-1), dropout, training) @ v


@pytest.mark.parametrize("hidden", [-math.inf, -1e4, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("training", [False, True])
def test_padding_is_in_no_number(hidden, training):
    allowed = (torch.arange(N) < torch.tensor([[N], [3]]))[:, None, None]
    x = given(2)
    mask = torch.zeros(2, 1, 1, N).masked_fill(~allowed, hidden)
    model = Written(masked, mask=mask, dropout=0.4, training=training)
    seen = watched(model, x)
    check(seen, model, x, allowed=allowed)
    assert torch.equal(~seen[0].padding.expand(2, N), allowed[:, 0, 0])
    weights = weights_of(model, x, allowed=allowed) * allowed[:, :, 0, :, None]
    torch.testing.assert_close(seen[0].statistics.received.double(), weights.sum(-2), rtol=1e-4, atol=1e-5)
    assert seen[0].statistics.visible[:, 0, 0].tolist() == [N, 3]


# what is no softmax of its logits


def plain(q, k):
    return torch.einsum("bihd,bjhd->bhij", q, k) * SCALE


def times(w, v):
    return w @ v.transpose(1, 2)


MIX = torch.rand(H, H, generator=torch.Generator().manual_seed(5))
OTHERS = {
    "talking heads, einsum": lambda w: torch.einsum("bhij,hg->bgij", w, MIX),
    "talking heads, to more": lambda w: torch.einsum("bhij,hg->bgij", w, MIX.repeat(1, 2))[:, ::2],
    "talking heads, linear": lambda w: F.linear(w.permute(0, 2, 3, 1), MIX).permute(0, 3, 1, 2),
    "talking heads, convolution": lambda w: F.conv2d(w, MIX[:, :, None, None]),
    "squared": lambda w: w**2,
    "renormalised": lambda w: w.square() / w.square().sum(-1, keepdim=True),
    "in place": lambda w: w.clone().mul_(w),
    "cut off": lambda w: w.masked_fill(w < w.median(), 0),
    "sharpened": lambda w: w * 1.01,
    "differential": lambda w: w - 0.3 * w.flip(-1).softmax(-1),
    "transposed": lambda w: w.mT,
    "by part": lambda w: w[:, :2].repeat(1, 2, 1, 1),
}


@pytest.mark.parametrize("dropped", ["not", "before", "after"])
@pytest.mark.parametrize("name", OTHERS)
def test_weights_that_were_changed_are_unseen_also_in_training(name, dropped):
    def attend(q, k, v):
        w = plain(q, k).softmax(-1)
        w = F.dropout(w, 0.3) if dropped == "before" else w
        w = OTHERS[name](w)
        return times(F.dropout(w, 0.3) if dropped == "after" else w, v)

    seen = watched(Told(attend), given(2))
    assert len(seen) == 0
    assert "Told" in seen.unseen


@pytest.mark.parametrize("name", ["talking heads, einsum", "squared", "sharpened", "transposed"])
def test_weights_of_many_rows_that_were_changed_are_unseen(name):
    """Of which some are looked at."""
    torch.manual_seed(0)
    x, model = torch.randn(2, 90, E), Told(lambda q, k, v: times(OTHERS[name](plain(q, k).softmax(-1)), v))
    assert "Told" in watched(model, x).unseen
    model = Told(matmul)
    check(watched(model, x), model, x)


def test_a_hard_mask_after_dropout_is_no_dropout():
    def attend(q, k, v):
        w = F.dropout(plain(q, k).softmax(-1), 0.1)
        return times(w.masked_fill(w < 0.2, 0), v)

    seen = watched(Told(attend), given(2))
    assert (len(seen), "changed" in seen.unseen["Told"]) == (0, True)


@pytest.mark.parametrize("how", [F.dropout, torch.dropout, nn.Dropout(0.4), "in place", "twice", "scaled back"])
def test_weights_that_were_dropped_are_the_softmax_they_were(how):
    def attend(q, k, v):
        w = plain(q, k).softmax(-1)
        if how == "in place":
            F.dropout(w, 0.4, inplace=True)
        elif how == "twice":
            w = F.dropout(F.dropout(w, 0.2), 0.2)
        elif how == "scaled back":
            w = F.dropout(w, 0.4).to(torch.float64).to(torch.float32)
        else:
            w = how(w) if isinstance(how, nn.Module) else how(w, 0.4, True)
        return times(w, v)

    class Held(Told):
        def __init__(self):
            super().__init__(attend)
            self.dropout = how if isinstance(how, nn.Module) else None

    x, model = given(2), Held()
    if how == "in place":  # the softmax's backward pass needs what was overwritten
        with torch.no_grad(), watch(model) as seen:
            model(x)
    else:
        seen = watched(model, x)
    check(seen, model, x)


NO_SOFTMAX = {
    "sigmoid": lambda s: s.sigmoid(),
    "sigmoid, in place": lambda s: s.clone().sigmoid_(),
    "exp": lambda s: s.exp() / s.exp().sum(-1, keepdim=True),
    "log softmax": lambda s: s.log_softmax(-1).exp(),
    "softmax over queries": lambda s: s.softmax(-2),
    "softmax over heads": lambda s: s.softmax(1),
    "relu": lambda s: s.relu() / N,
    "linear": lambda s: s / s.sum(-1, keepdim=True),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NO_SOFTMAX)
def test_attention_by_no_softmax_over_keys_is_listed(name, training):
    seen = watched(Told(lambda q, k, v: times(F.dropout(NO_SOFTMAX[name](plain(q, k)), 0.2, training), v)), given(2))
    assert len(seen) == 0
    assert [*seen.unseen] == ["Told"]


def test_a_softmax_of_heads_that_were_mixed_before_it_is_what_ran():
    def attend(q, k, v):
        return times(torch.einsum("bhij,hg->bgij", plain(q, k), MIX).softmax(-1), v)

    x, model = given(2), Told(attend)
    q, k, _ = (part.double() for part in model.split(x))
    logits = torch.einsum("bhij,hg->bgij", plain(q, k), MIX.double())
    seen = watched(model, x)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    torch.testing.assert_close(seen[0].statistics.entropy.double(), entropy, rtol=1e-4, atol=1e-5)


def test_weights_that_meet_two_values_are_one_attention():
    """Those of relative positions come second."""

    def attend(q, k, v):
        w = plain(q, k).softmax(-1)
        return times(w, v) + torch.einsum("bhij,ijd->bhid", w, torch.ones(N, N, D))

    x, model = given(2), Told(attend)
    check(watched(model, x), model, x)


class Layers(nn.Module):
    """What is no attention."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.up, self.down = nn.Parameter(torch.randn(E, E)), nn.Parameter(torch.randn(E, E))
        self.linear = nn.Linear(E, E)

    def forward(self, x):
        match self.kind:
            case "perceptron":
                return torch.matmul(torch.matmul(x, self.up).sigmoid(), self.down)
            case "transposed":
                return ((x @ self.up.t()).relu() @ self.down.t()).exp() @ self.up
            case "gated":
                return (x @ self.up).sigmoid() * (x @ self.down)
            case "classifier":
                return self.linear(x).softmax(-1)
            case "pooled classifier":
                return (self.linear(x[:, 0]).softmax(-1) @ self.up).log_softmax(-1)
            case "graph":
                near = torch.rand(len(x), N, N)
                return torch.bmm(near, self.linear(torch.bmm(near, x)).relu())
            case "gram":
                return F.normalize((x.mT @ x).flatten(1), dim=-1)
            case "contrast":
                return (x[:, 0] @ x[:, 1].mT).softmax(-1).log().diagonal()
            case "adapter":
                return x + (x @ self.up[:, :2]).tanh() @ self.up[:, :2].mT


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["perceptron", "transposed", "gated", "classifier", "pooled classifier", "graph", "gram", "contrast", "adapter"],
)
def test_what_is_no_attention_is_neither_reported_nor_listed(kind, gradients):
    x = given(3)
    model = Layers(kind)
    with torch.set_grad_enabled(gradients), watch(model) as seen:
        model(x)
    with torch.inference_mode(), watch(model) as again:
        model(x)
    assert (len(seen), seen.unseen, len(again), again.unseen) == (0, {}, 0, {})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_no_change(dtype):
    def attend(q, k, v):
        q, k, v = (x.to(dtype) for x in (q, k, v))
        return times(F.dropout(plain(q, k).softmax(-1, dtype=torch.float32).to(dtype), 0.2), v)

    seen = watched(Told(attend), given(2))
    assert (len(seen), seen.unseen) == (1, {})


def test_autocast_is_no_change():
    model, x = Told(matmul), given(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = watched(model, x)
    assert (len(seen), seen.unseen) == (1, {})


@pytest.mark.parametrize("name", ["bihj", "matmul", "bmm", "flattened", "hbij"])
def test_the_importance_of_heads_is_that_of_heads_in_every_layout(name):
    """Against gates that are really there."""
    attend, options = LAYOUTS[name]
    x, model = given(2), Told(attend, **options)
    found = head_importance(model, [x], lambda model, x: model(x).square().sum())
    plainly = Told(matmul)
    plainly.load_state_dict(model.state_dict())
    expected = head_importance(plainly, [x], lambda model, x: model(x).square().sum())
    torch.testing.assert_close(found["Told"], expected["Told"], rtol=1e-4, atol=1e-5)
