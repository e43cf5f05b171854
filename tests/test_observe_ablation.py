"""Head importance held to ablation: what the loss does when a head's output is scaled, or zeroed, by hand.

In float64, near a factor of 1 the difference quotient is the derivative; and where the loss is linear in the heads'
outputs, zeroing a head takes away just that.
"""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import clearhead as ch
from ablation import importance_by_hand as by_hand
from ablation import projections, scaled
from clearhead.nn import CrossAttention, Decoder, DecoderLayer, Encoder, EncoderLayer, SelfAttention, Seq2Seq
from clearhead.observe import head_importance

E, H, B, N, M = 12, 3, 3, 7, 5
SIZES = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
X, MEMORY = torch.randn(B, N, E, **SIZES), torch.randn(B, M, E, **SIZES)
IDS, LENGTHS = torch.randint(1, 20, (B, N), generator=torch.Generator().manual_seed(1)), torch.tensor([7, 4, 6])


def of_each(y):
    """The loss of each sample."""
    return (y.flatten(1) * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype)).sum(1).sin()


def self_attention(**options):
    options = {"num_heads": H, **options}
    return SelfAttention(E, **options), lambda model, batch: of_each(model(*batch)), (X,)


def with_lengths(**options):
    model, loss, _ = self_attention(**options)
    return model, loss, (X, LENGTHS)


def cross_attention():
    return CrossAttention(E, H), lambda model, batch: of_each(model(*batch)), (X, MEMORY)


def encoder():
    layer = EncoderLayer(SelfAttention(E, H, ch.Softmax(ch.causal() & ch.window(3, 0))), E)
    return Encoder(layer, 2), lambda model, batch: of_each(model(*batch)), (X, LENGTHS)


def decoder():
    layer = DecoderLayer(SelfAttention(E, H, ch.Softmax(ch.causal())), CrossAttention(E, H), E)
    return Decoder(layer, 2), lambda model, batch: of_each(model(*batch)), (X, MEMORY)


def seq2seq():
    model = Seq2Seq(20, 20, E, H, E, encoder_layers=1, decoder_layers=1)
    return model, lambda model, batch: of_each(model(*batch)), (IDS, IDS.flip(1), LENGTHS, LENGTHS)


def torch_attention(**options):
    model = nn.MultiheadAttention(E, H, batch_first=True, **options)
    return model, lambda model, batch: of_each(model(*batch, batch[1])[0]), (X, MEMORY)


def torch_encoder():
    layer = nn.TransformerEncoderLayer(E, H, E, batch_first=True)
    run = lambda model, batch: of_each(model(*batch))  # noqa: E731
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), run, (X,)


class Functional(nn.Module):
    """The function behind nn.MultiheadAttention, called by someone else."""

    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(E, H)

    def forward(self, x):
        x, inner = x.transpose(0, 1), self.inner
        weights = inner.in_proj_weight, inner.in_proj_bias, None, None, False, 0.0
        return F.multi_head_attention_forward(
            x, x, x, E, H, *weights, inner.out_proj.weight, inner.out_proj.bias, need_weights=False
        )[0].transpose(0, 1)


MODELS = {
    "SelfAttention": self_attention,
    "of fewer keys": lambda: self_attention(kv_heads=1),
    "with sinks and a soft cap": lambda: self_attention(
        mechanism=ch.Softmax(softcap=2.0, sinks=nn.Parameter(torch.rand(H)))
    ),
    "with lengths": with_lengths,
    "CrossAttention": cross_attention,
    "Encoder": encoder,
    "Decoder": decoder,
    "Seq2Seq": seq2seq,
    "nn.MultiheadAttention": torch_attention,
    "with more keys": lambda: torch_attention(add_bias_kv=True, add_zero_attn=True),
    "nn.TransformerEncoder": torch_encoder,
    "multi_head_attention_forward": lambda: (Functional(), lambda model, batch: of_each(model(*batch)), (X,)),
}


def made(name):
    torch.manual_seed(3)
    model, loss, batch = MODELS[name]()
    with torch.no_grad():
        for weights in model.parameters():  # biases and learned keys begin at 0, which would hide their mistakes
            weights.add_(0.1 * torch.randn_like(weights))
    return model.double().eval(), loss, batch


@pytest.mark.parametrize("name", MODELS)
def test_importance_is_what_scaling_a_head_does(name):
    model, loss, batch = made(name)
    before = deepcopy(model.state_dict())
    found, expected = head_importance(model, [batch], loss), by_hand(model, batch, loss)
    if name == "multi_head_attention_forward":
        expected = {"Functional": expected["inner"]}
    assert found.unseen == {}
    assert set(found.scores) == set(expected)
    for path, scores in expected.items():
        torch.testing.assert_close(found[path].double(), scores, rtol=1e-4, atol=1e-6)
    assert all(weights.equal(before[key]) for key, weights in model.state_dict().items())
    mean = head_importance(model, [batch], lambda model, batch: loss(model, batch).mean())
    for path, scores in expected.items():
        torch.testing.assert_close(mean[path].double(), scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["SelfAttention", "of fewer keys", "with lengths", "CrossAttention", "nn.MultiheadAttention"]
)
def test_zeroing_a_head_takes_from_a_linear_loss_what_its_importance_says(name):
    model, _, batch = made(name)

    def loss(model, batch):
        y = model(*batch, batch[1])[0] if isinstance(model, nn.MultiheadAttention) else model(*batch)
        return (y.flatten(1) * torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype)).sum(1)

    ((path, (projection, heads)),) = projections(model).items()
    lost = []
    for head in range(heads):
        with scaled(projection, heads, head, 0), torch.no_grad():
            without = loss(model, batch)
        lost.append((loss(model, batch) - without).abs().sum().detach())
    expected = torch.stack(lost) / torch.stack(lost).norm()
    torch.testing.assert_close(head_importance(model, [batch], loss)[path].double(), expected, rtol=1e-5, atol=1e-7)
