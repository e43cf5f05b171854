"""Wrong input to the library: one line that names what was wrong, where, and what to write instead."""

import pytest
import torch
from torch import nn

import clearhead as ch
from clearhead.errors import ClearheadError, InputError, MissingExtra, ShapeError, extra

pytestmark = pytest.mark.usefixtures("unchecked")

Q, K, V = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 9, 8), torch.randn(2, 2, 9, 5)
X = torch.randn(2, 6, 8)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ch.attend(Q, K[..., :7], V), "q has shape (2, 4, 6, 8), k (2, 2, 9, 7): the last axis"),
        (lambda: ch.attend(Q, K[:1], V), "axis 0, the samples, must be the same; write k.expand(2, …)"),
        (lambda: ch.attend(Q[:, :3], K, V), "axis 1, the 3 heads of q, must be a multiple of k's 2"),
        (lambda: ch.attend(Q, K, V[:, :1]), "v has shape (2, 1, 9, 5); k makes it (2, 2, 9, Dv)"),
        (lambda: ch.attend(Q, K, V[:, :, :8]), "v has shape (2, 2, 8, 5); k makes it (2, 2, 9, Dv)"),
        (lambda: ch.attend(Q, K, V[0]), "v has 3 axes, shape (2, 9, 5); q and k have 4"),
        (lambda: ch.attend(Q, K[0], V), "q has 4 axes and k has 3; give both (B, H, N, D)"),
        (
            lambda: ch.attend(Q[None], K[None], V),
            "q has shape (1, 2, 4, 6, 8); expected (N, D) or (B, N, D) or (B, H, N, D)",
        ),
        (lambda: ch.attend(Q.double(), K, V), "q is torch.float64 and k is torch.float32; write k.to(q.dtype)"),
        (
            lambda: ch.attend(Q, K, V.double()),
            "v is torch.float64, q and k are torch.float32; write v.to(torch.float32)",
        ),
        (
            lambda: ch.attend(Q.long(), K, V),
            "q is torch.int64; attention needs floating-point numbers: write q.float()",
        ),
        (lambda: ch.attend(Q, K.to("meta"), V), "q is on cpu and k is on meta; write k.to(q.device)"),
        (lambda: ch.attend(Q, [1], V), "k is a list; it must be a torch.Tensor"),
        (lambda: ch.attend(Q, K, [1]), "v is a list; it must be a torch.Tensor"),
        (
            lambda: ch.attend(Q, K, V, mask=torch.zeros(6, 9)),
            "mask is torch.float32; it must be boolean, True = may attend",
        ),
        (
            lambda: ch.attend(Q, K, V, mask=torch.ones(9, 6) > 0),
            "mask has shape (9, 6); it must broadcast to (2, 4, 6, 9)",
        ),
        (lambda: ch.attend(Q, K, V, bias=torch.ones(9, 6)), "bias has shape (9, 6); it must broadcast to (2, 4, 6, 9)"),
        (lambda: ch.attend(Q, K, V, bias=torch.ones(6, 9) > 0), "bias is torch.bool; it must be floating-point"),
        (lambda: ch.attend(Q, K, V, bias=0.5), "bias is a float; write a float tensor or an object such as ch.ALiBi"),
        (lambda: ch.attend(Q, K, V, bias=ch.ALiBi(8)), "bias is for 8 heads, q has 4; write ALiBi(4, …)"),
        (
            lambda: ch.attend(Q, K, V, bias=ch.T5Bias(4), lengths=(None, torch.tensor([9, 9]))),
            "bias is a T5Bias, but distances are unknown where keys alone have lengths; give q_positions",
        ),
        (
            lambda: ch.attend(Q, K, V, bias=ch.T5Bias(4).to("meta")),
            "bias is on meta, q is on cpu; write bias.to('cpu')",
        ),
        (lambda: ch.ALiBi(0), "num_heads is 0; it must be a whole number of at least 1"),
        (lambda: ch.T5Bias(4, buckets=3), "buckets is 3; it must be a whole number of at least 4"),
        (lambda: ch.T5Bias(4, 1, bidirectional=False), "buckets is 1; it must be a whole number of at least 2"),
        (lambda: ch.T5Bias(4, 32, 8), "max_distance is 8; it must be a whole number of at least 9"),
        (lambda: ch.RelativeBias(4, 0.5), "max_distance is 0.5; it must be a whole number of at least 1"),
        (lambda: ch.Softmax(sinks=True), "sinks is bool; write a float tensor (H,) such as nn.Parameter"),
        (lambda: ch.Softmax(sinks=torch.zeros(4) > 1), "sinks is torch.bool; write a float tensor (H,)"),
        (
            lambda: ch.attend(Q, K, V, sinks=torch.zeros(2)),
            "sinks has shape (2,); expected (4,), a logit for each head",
        ),
        (lambda: ch.attend(Q, K, V, sinks=torch.zeros(4, 1)), "sinks has shape (4, 1); expected (4,)"),
        (lambda: ch.attend(Q, K, V, sinks=torch.zeros(4, device="meta")), "sinks is on meta, q is on cpu"),
        (lambda: ch.attend(Q, K, V, lengths=torch.tensor([6, 6])), "one tensor, but there are 6 queries and 9 keys"),
        (lambda: ch.attend(Q, Q, Q, lengths=torch.tensor([6])), "lengths has shape (1,); expected (2,)"),
        (
            lambda: ch.attend(Q, Q, Q, lengths=torch.tensor([6, 7])),
            "lengths holds [6, 7]; each must be between 0 and the 6",
        ),
        (lambda: ch.attend(Q, K, V, lengths=(None, torch.tensor([6, -1]))), "lengths[1] holds [6, -1]"),
        (lambda: ch.attend(Q, Q, Q, lengths=[6, 6]), "lengths is list; it must be a tensor of whole numbers"),
        (lambda: ch.attend(Q, Q, Q, lengths=torch.tensor([6.0, 6.0])), "lengths is torch.float32"),
        (lambda: ch.attend(Q, Q, Q, lengths=(None, None, None)), "lengths is a tuple of 3; give a tensor or a pair"),
        (
            lambda: ch.attend(Q, K, V, q_positions=torch.arange(5)),
            "q_positions has shape (5,); it must broadcast to (2, 4, 6)",
        ),
        (
            lambda: ch.attend(Q, K, V, q_positions=torch.rand(6)),
            "q_positions is torch.float32; positions are whole numbers",
        ),
        (lambda: ch.attend(Q, K, V, k_positions=torch.arange(9)), "k_positions came without q_positions"),
        (
            lambda: ch.attend(Q, K, V, torch.ones(6, 9) > 0),
            "it must be a Pattern such as ch.causal() (a tensor is a mask)",
        ),
        (lambda: ch.attend(Q, K, V, softcap=0.0), "softcap is 0.0; it must be positive"),
        (lambda: ch.attend(Q, K, V, dropout=1.0), "dropout is 1.0; it must be at least 0 and below 1"),
        (lambda: ch.Softmax()(Q, K).weights([6]), "row 6 is outside 0 … 5"),
        (lambda: ch.Softmax()(Q, K).weights([-7]), "row -7 is outside 0 … 5"),
        (lambda: ch.Softmax()(Q, K).weights([0.5]), "rows must be a list of whole numbers"),
        (lambda: ch.Softmax()(Q, K).statistics(sinks=[9]), "key 9 is outside 0 … 8"),
        (lambda: ch.Softmax()(Q, K).pool(0, 3), "pool(0, 3): height and width must be at least 1"),
        (lambda: ch.Softmax()(Q, K).top(0), "top(0): ask for at least 1 key"),
        (lambda: ch.Softmax()(Q, K).T @ V, "y has shape (2, 2, 9, 5); expected 6 queries, 2 samples and 4 heads"),
        (
            lambda: ch.nn.SelfAttention(10, 4),
            "embed_dim=10 does not divide into num_heads=4; the nearest that divides it is 5",
        ),
        (lambda: ch.nn.SelfAttention(12, 4, kv_heads=3), "num_heads=4 is no multiple of kv_heads=3"),
        (lambda: ch.nn.SelfAttention(8, 2, positions=ch.nn.Sinusoidal(8)), "give it to Encoder or Decoder"),
        (lambda: ch.nn.SelfAttention(8)(X[0]), "x has shape (6, 8); expected (B, N, 8)"),
        (lambda: ch.nn.SelfAttention(9)(X), "x has shape (2, 6, 8); expected (B, N, 9)"),
        (
            lambda: ch.nn.CrossAttention(8)(X, None),
            "memory is None, which only a cache that holds one can stand in for",
        ),
        (lambda: ch.nn.SelfAttention.from_torch(nn.MultiheadAttention(8, 2, add_bias_kv=True)), "has bias_k"),
        (
            lambda: ch.nn.SelfAttention.from_torch(nn.MultiheadAttention(8, 2, kdim=4, vdim=4)),
            "write CrossAttention.from_torch",
        ),
        (lambda: ch.nn.Learned(8, 5)(X, torch.arange(6)[None]), "position 5 is outside the 5 learned ones"),
        (lambda: ch.nn.Rotary(5), "head_dim=5 is odd"),
        (lambda: ch.nn.Seq2Seq(9, 9, positions="rotery"), "unknown positions 'rotery'; did you mean 'rotary'?"),
        (lambda: ch.nn.Sampling(temperature=0.0), "temperature is 0.0; it must be positive (near 0 is greedy)"),
        (lambda: ch.Softmax().cache().attend(Q), "the cache is empty: give k and v with the first queries"),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(InputError) as caught:
        make()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shapes_have_an_error_of_their_own():
    with pytest.raises(ShapeError):
        ch.attend(Q, K[..., :7], V)
    with pytest.raises(ValueError, match="last axis"):  # who does not know Clearhead's errors catches these
        ch.attend(Q, K[..., :7], V)


def test_a_missing_extra_says_what_to_install():
    with pytest.raises(MissingExtra, match=r"'no_such_module' is not installed: pip install 'clearhead\[train\]'"):
        extra("no_such_module", "train")
    assert issubclass(MissingExtra, ImportError)
    assert issubclass(MissingExtra, ClearheadError)
    assert extra("json", "train").loads("1") == 1
