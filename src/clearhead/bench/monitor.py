"""What monitoring costs in training, at the monitor's defaults."""

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from clearhead.bench.comparison import Comparison, Say, compare
from clearhead.nn import Seq2Seq
from clearhead.observe import AttentionMonitor

WITHOUT, WITH = "without", "with the monitor"
Step = Callable[[], None]


def bench_monitor(rounds: int = 10, say: Say | None = None) -> list[Comparison]:
    """Training with `AttentionMonitor` beside the same without, for each of two models.

    Those are the model of the task g2p (short sequences, many of them), and an `nn.TransformerEncoder` on 512 tokens.
    First `rounds` of as many steps as lie between two monitored ones, then as many single steps, monitored and not.
    """
    models = {"g2p's model": _g2p, "an encoder": _encoder}
    return [found for title, made in models.items() for found in _measured(title, *made(), rounds, say)]


def _measured(title: str, model: nn.Module, step: Step, rounds: int, say: Say | None) -> list[Comparison]:
    monitor, numbers = AttentionMonitor(model), count()

    def monitored(number: int) -> None:
        with monitor.step(number):
            step()

    def some(one: Step) -> Step:
        def run() -> None:
            for _ in range(monitor.every):
                one()

        return run

    many = {WITHOUT: some(step), WITH: some(lambda: monitored(next(numbers)))}
    single = {WITHOUT: step, WITH: lambda: monitored(0)}
    return [
        compare(f"training {title}, {monitor.every} steps", many, WITHOUT, rounds, say),
        compare(f"training {title}, a monitored step", single, WITHOUT, rounds * monitor.every, say),
    ]


def _trained(model: nn.Module, loss: Callable[[], Tensor]) -> tuple[nn.Module, Step]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return model.train(), step


def _g2p() -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    model = Seq2Seq(40, 80, embed_dim=128, num_heads=4, encoder_layers=2, decoder_layers=1, max_length=64)
    source, target = torch.randint(0, 40, (240, 8)), torch.randint(0, 80, (240, 9))
    return _trained(model, lambda: cross_entropy(model(source, target[:, :-1]).flatten(0, 1), target[:, 1:].flatten()))


def _encoder() -> tuple[nn.Module, Step]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    x = torch.randn(4, 512, 256)
    return _trained(model, lambda: model(x).square().mean())
