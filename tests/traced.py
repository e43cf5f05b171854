"""Self-attention compiled without a graph break, and packed documents exported too, against itself in eager mode.

Run by test_operator.py as a program; prints a word for each thing that was found equal.
"""

import torch

import clearhead as ch

IDS = torch.tensor([0, 0, 0, 4, 4, -1, 2] + [7] * 60)
GRAPH = ch.graph(torch.randint(67, (2, 200), generator=torch.Generator().manual_seed(0)), nodes=67)
CASES = (  # a pattern, and a soft cap, with which `stream` computes it
    (ch.everything(), None),
    (ch.everything(), 5.0),
    (ch.causal(), None),
    (ch.causal(), 5.0),
    (ch.causal() & ch.window(3), 5.0),
    (ch.chunks(4) | ch.first(2), None),
    (ch.longformer(4, [0, 5]), None),
    (ch.bigbird(2, length=8), None),
    (ch.sparse_transformer(3, "fixed", 1), None),
    (ch.causal() | ch.prefix(2), 5.0),
    (ch.causal() & ch.documents(IDS), None),
    (ch.causal() & ch.documents(IDS), 5.0),
    (GRAPH, None),
    (GRAPH, 5.0),
)


def layer(pattern, softcap):
    torch.manual_seed(0)
    return ch.nn.SelfAttention(16, 2, ch.Softmax(pattern, softcap=softcap))


def compiled():
    """Outputs and gradients, by `sdpa` and by `stream`, with and without padding."""
    lengths = torch.tensor([7, 3])
    for pattern, softcap in CASES:
        eager = layer(pattern, softcap)
        torch._dynamo.reset()
        traced = torch.compile(eager, fullgraph=True, backend="aot_eager")
        for given in (None, lengths):
            x = torch.randn(2, 7, 16)
            want, got = eager(x, given), traced(x, given)
            torch.testing.assert_close(got, want)
            parameters = list(eager.parameters())
            a, b = (torch.autograd.grad(y.square().sum(), parameters) for y in (want, got))
            torch.testing.assert_close(b, a)


class Packed(torch.nn.Module):
    """Documents that come with the call, and are made a pattern of while it is traced."""

    def __init__(self, softcap):
        super().__init__()
        self.layer = layer(ch.causal(), softcap)

    def forward(self, x, ids):
        return self.layer(x, pattern=ch.documents(ids))


def packed():
    """A pattern with tensors as an argument of what is compiled, and one that is made within."""
    x, ids = torch.randn(2, 7, 16), torch.tensor([[0, 0, 1, 1, 1, -1, 2], [3, 3, 3, 3, 5, 5, 5]])
    for softcap in (None, 5.0):
        torch._dynamo.reset()
        within, eager = Packed(softcap), layer(ch.causal(), softcap)
        want = eager(x, pattern=ch.documents(ids))
        torch.testing.assert_close(torch.compile(within, fullgraph=True, backend="aot_eager")(x, ids), want)
        traced = torch.compile(eager, fullgraph=True, backend="aot_eager")
        for pattern in (ch.documents(ids), ch.documents(ids[:1]), ch.graph([ids[:, :2].abs(), ids[:, 2:4]], nodes=7)):
            torch.testing.assert_close(traced(x, pattern=pattern), eager(x, pattern=pattern))
        b, n = torch.export.Dim("b", min=2, max=64), torch.export.Dim("n", min=2, max=512)
        shapes = {"x": {0: b, 1: n}, "ids": {0: b, 1: n}}
        program = torch.export.export(within.eval(), (x, ids), dynamic_shapes=shapes)
        x, ids = torch.randn(3, 20, 16), torch.arange(60).view(3, 20) // 7
        torch.testing.assert_close(program.module()(x, ids), within(x, ids))
        x, ids = torch.randn(2, 7, 16), torch.tensor([[0, 0, 1, 1, 1, -1, 2], [3, 3, 3, 3, 5, 5, 5]])


for check in (compiled, packed):
    check()
    print(check.__name__)
