"""Self-attention compiled without a graph break and exported with any batch and length, against itself in eager mode.

Run by test_operator.py as a program; prints a word for each thing that was found equal.
"""

import torch

import clearhead as ch

PATTERNS = (ch.everything(), ch.causal(), ch.causal() & ch.window(3), ch.chunks(4) | ch.first(2))


def layer(pattern, softcap):
    torch.manual_seed(0)
    return ch.nn.SelfAttention(16, 2, ch.Softmax(pattern, softcap=softcap))


def compiled():
    """Outputs and gradients, by `sdpa` and by `stream`, with and without padding."""
    lengths = torch.tensor([7, 3])
    for pattern in PATTERNS:
        for softcap in (None, 5.0):
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


def exported():
    b, n = torch.export.Dim("b", min=2, max=64), torch.export.Dim("n", min=2, max=512)
    for pattern in PATTERNS:
        for softcap in (None, 5.0):
            eager = layer(pattern, softcap).eval()
            program = torch.export.export(eager, (torch.randn(3, 11, 16),), dynamic_shapes=({0: b, 1: n},))
            for shape in ((2, 5, 16), (4, 40, 16)):
                x = torch.randn(shape)
                torch.testing.assert_close(program.module()(x), eager(x))


for check in (compiled, exported):
    check()
    print(check.__name__)
