"""Self-attention of every pattern, compiled without a graph break and exported, against itself in eager mode.

Run by test_export.py as a program, with the names of checks; prints a word for each that was found equal.
"""

import io
import sys

import torch

import clearhead as ch
from clearhead import patterns

WHOLE = {
    "everything": ch.everything(),
    "causal": ch.causal(),
    "window": ch.window(3, 1),
    "chunks": ch.chunks(4),
    "first": ch.first(2),
    "stride": patterns.stride(3),
    "prefix": patterns.prefix(3) | ch.causal(),
    "global_tokens": patterns.global_tokens((0, 4)) | ch.window(2),
    "scattered": patterns.scattered(2, 0) | ch.window(1),
    "not": ~ch.window(2),
    "sliding": ch.causal() & ch.window(3),
    "sinks": ch.causal() & (ch.first(2) | ch.window(3)),
    "longformer": patterns.longformer(4),
    "sparse_transformer": patterns.sparse_transformer(4),
    "bigbird": patterns.bigbird(2, length=1400),
}

LONG = {
    **WHOLE,
    "documents": ch.causal() & ch.documents(torch.arange(1400) // 90),
    "graph": ch.graph(torch.randint(1400, (2, 9000), generator=torch.Generator().manual_seed(0)), nodes=1400),
}


def layer(pattern, softcap=None, **more):
    torch.manual_seed(0)
    options = {"kv_heads": 1, "positions": ch.nn.Rotary(8), "qk_norm": True}
    return ch.nn.SelfAttention(16, 2, ch.Softmax(pattern, softcap=softcap, **more), **options)


def added():
    """What may be added to the logits, and beside them: a learned bias, one that learns nothing, learned sinks."""
    learned = {"bias": ch.T5Bias(2, 8, 12), "sinks": torch.nn.Parameter(torch.randn(2))}
    torch.nn.init.normal_(learned["bias"].weight)
    return learned, {"bias": ch.ALiBi(2)}


def compiled(names=("causal", "sinks")):
    """Outputs and gradients with open sizes, padded or with a mask; by a plain kernel, and by `stream`."""
    layers = [layer(WHOLE[name], 5.0 if i % 2 else None) for i, name in enumerate(names)]
    for i, eager in enumerate((*layers, layer(WHOLE["causal"], **added()[0]))):
        torch._dynamo.reset()
        traced = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
        for b, n in ((2, 7), (3, 11)):
            given = {"mask": torch.rand(b, 1, n, n) < 0.8} if i % 2 else {"lengths": torch.randint(1, n + 1, (b,))}
            x = torch.randn(b, n, 16)
            want, got = eager(x, **given), traced(x, **given)
            torch.testing.assert_close(got, want)
            parameters = list(eager.parameters())
            wanted, found = (torch.autograd.grad(y.square().sum(), parameters) for y in (want, got))
            torch.testing.assert_close(found, wanted)


def loaded(program):
    """A program that was written and is read back."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def exported(shapes=((2, 5), (4, 40), (7, 2), (2, 1100))):
    """With any batch and length, for shapes that the program never saw; every other with padding, one read back.

    Of the longest no dense mask is held: what a program chooses does not depend on the length it was traced at.
    """
    batch, n = torch.export.Dim("batch", min=2, max=8), torch.export.Dim("n", min=2, max=1400)
    cases = [(name, pattern, {}) for name, pattern in LONG.items()]
    for i, (name, pattern, more) in enumerate([*cases, *(("added", WHOLE["causal"], more) for more in added())]):
        padded, softcap = i % 2, (None, 5.0)[i // 2 % 2]
        eager = layer(pattern, softcap, **more).eval()
        given = (torch.randn(3, 11, 16), *([torch.tensor([11, 4, 1])] if padded else []))
        sizes = ({0: batch, 1: n}, *([{0: batch}] if padded else []))
        program = torch.export.export(eager, given, dynamic_shapes=sizes)
        program = (loaded(program) if name == "sliding" else program).module()
        for b, length in shapes:
            x = torch.randn(b, length, 16)
            more = [torch.randint(0, length + 1, (b,))] if padded else []
            torch.testing.assert_close(program(x, *more), eager(x, *more), msg=lambda m, w=name: f"{w}: {m}")


def compiled_long(names=("documents",)):
    """A length of which no dense mask is held, with open sizes: outputs and gradients."""
    for i, name in enumerate(names):
        eager = layer(LONG[name], 5.0 if i % 2 else None)
        torch._dynamo.reset()
        traced = torch.compile(eager, fullgraph=True, backend="aot_eager", dynamic=True)
        x, parameters = torch.randn(2, 1100, 16), list(eager.parameters())
        want, got = eager(x), traced(x)
        torch.testing.assert_close(got, want)
        wanted, found = (torch.autograd.grad(y.square().mean(), parameters) for y in (want, got))
        torch.testing.assert_close(found, wanted)


def transformers():
    """Models of Hugging Face that attend by Clearhead, whose masks are written out while they are traced."""
    import foreign_models as foreign

    ch.nn.register_with_transformers()
    for name, options in (("llama", {"use_cache": False}), ("bert", {})):
        model, given = foreign.BY_NAME[name].make("clearhead"), foreign.BY_NAME[name].inputs(True, left=True)
        traced, real = torch.compile(model, fullgraph=True, backend="aot_eager"), given["attention_mask"].bool()
        want, got = (each(**given, **options).last_hidden_state[real] for each in (model, traced))
        torch.testing.assert_close(got, want)


for name in sys.argv[1:]:
    globals()[name]()
    print(name)
