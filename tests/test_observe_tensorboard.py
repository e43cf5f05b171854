"""What TensorBoard is given is what was measured."""

import io
import math

import numpy as np
import pytest
import torch

from clearhead.errors import InputError
from clearhead.maps import Softmax
from clearhead.nn import SelfAttention
from clearhead.observe.calls import Call
from clearhead.observe.monitoring.monitor import AttentionMonitor
from clearhead.observe.monitoring.tensorboard import GAP, SIDE, TensorBoard, picture
from clearhead.picture.colour import LIGHT

pytest.importorskip("tensorboard")


@pytest.fixture
def events(tmp_path):
    """Reads back what was written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(monitor):
        monitor.tensorboard.writer.close()
        accumulator = EventAccumulator(str(tmp_path), {"scalars": 0, "images": 0, "histograms": 0})
        return accumulator.Reload()

    return read


def monitored(folder, steps=12, **options):
    torch.manual_seed(0)
    model = SelfAttention(16, 2)
    board = TensorBoard(folder, **options)
    monitor = AttentionMonitor(model, every=2, tensorboard=board, log=(records := []).append)
    for step in range(steps):
        with monitor.step(step):
            model(torch.randn(3, 20, 16)).sum().backward()
    return monitor, records


def test_scalars_histograms_and_heatmaps(tmp_path, events):
    monitor, records = monitored(tmp_path, histograms=2, heatmaps=3)
    read = events(monitor)
    layer = "SelfAttention"
    numbers = [record["attention"][layer] for record in records]
    for name in ("entropy", "sink", "max_logit"):
        for head in range(2):
            found = read.Scalars(f"{name}/{layer}/head{head}")
            assert [each.step for each in found] == [0, 2, 4, 6, 8, 10]
            assert [each.value for each in found] == pytest.approx([x[name][head] for x in numbers], rel=1e-6)
    norms = [each.value for each in read.Scalars(f"gradient_norm/{layer}")]
    assert norms == pytest.approx([x["gradient_norm"] for x in numbers], rel=1e-6)
    rows = read.Histograms(f"normalized_entropy_of_rows/{layer}")
    assert [each.step for each in rows] == [0, 4, 8]
    assert rows[0].histogram_value.num == 3 * 2 * 16  # samples, heads, rows
    mean = rows[0].histogram_value.sum / rows[0].histogram_value.num
    assert mean == pytest.approx(np.mean(numbers[0]["normalized_entropy"]), rel=1e-3)
    assert [each.step for each in read.Images(f"attention/{layer}")] == [0, 6]
    from PIL import Image

    image = Image.open(io.BytesIO(read.Images(f"attention/{layer}")[0].encoded_image_string))
    assert image.size == (2 * SIDE + GAP, SIDE)


def test_a_heatmap_has_the_colours_of_its_weights():
    torch.manual_seed(0)
    q, k = 3 * torch.randn(2, 3, SIDE, 8), torch.randn(2, 3, SIDE, 8)
    A = Softmax()(q, k)
    call = Call("layer", "self", "here", (2, 3, SIDE, SIDE), A.statistics(), map=A)
    pixels = picture(call)
    assert pixels.shape == (SIDE, 3 * SIDE + 2 * GAP, 3)
    weights = ((q.double() @ k.double().mT) / math.sqrt(8)).softmax(-1)[0]
    steps = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in LIGHT], float)
    for head in range(3):
        at = (weights[head] / weights[head].max()).numpy() * (len(LIGHT) - 1)
        below = np.minimum(at.astype(int), len(LIGHT) - 2)
        share = (at - below)[..., None]
        want = steps[below] * (1 - share) + steps[below + 1] * share
        part = pixels[:, head * (SIDE + GAP) : head * (SIDE + GAP) + SIDE]
        assert np.abs(part - want).max() <= 1.5


def test_maps_are_kept_for_heatmaps_alone(tmp_path):
    monitor, _ = monitored(tmp_path, steps=0, heatmaps=3)
    kept = []
    for step in range(0, 8, 2):
        with monitor.step(step):
            monitor.model(torch.randn(1, 9, 16))
            kept.append(monitor._seen[0].map is not None)
    assert kept == [True, False, False, True]
    monitor.tensorboard.writer.close()


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="histograms is 0"):
        TensorBoard(tmp_path, histograms=0)
