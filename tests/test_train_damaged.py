"""A run folder whose files are damaged: one line that says which, and what is wrong with it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from clearhead.cli import main
from clearhead.data import Tokenizer
from clearhead.errors import ConfigError, InputError, RunError
from clearhead.train import load
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.model import Model, build
from tiny_task import small


@pytest.fixture
def run(tmp_path):
    """The folder of a model that was never trained."""
    folder, config = RunFolder(tmp_path / "run"), small("model.positions=learned")
    folder.path.mkdir()
    source, target = Tokenizer.characters(["abcdef"]), Tokenizer.symbols(["A1 B C D E1 F"])
    torch.manual_seed(0)
    Model(build(config, source, target), source, target, config).save(folder)
    folder.write_config(config)
    write_text(folder.source, source.to_json())
    write_text(folder.target, target.to_json())
    return folder


def _change(folder, change):
    """Write the weights again, with a change."""
    weights = load_file(folder.model)
    change(weights)
    save_file(weights, folder.model)


def _value(name, value):
    def change(weights):
        weights[name].view(-1)[3] = value

    return change


WEIGHT = "encoder.layers.0.attention.out.weight"


def test_a_whole_one_predicts(run):
    assert len(load(run.path).predict(["fade"])) == 1
    _change(run, lambda weights: None)  # without the digests of its tokenizers, as other programs may write it
    assert len(load(run.path).predict(["fade"])) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_value(WEIGHT, float("nan")), f"{WEIGHT} holds NaN or Inf: the training has diverged; train again with"),
        (_value("target_embedding.weight", float("-inf")), "target_embedding.weight holds NaN or Inf"),
        (lambda weights: weights.pop(WEIGHT), f"is damaged: {WEIGHT} is missing"),
        (lambda weights: weights.pop("target_embedding.weight"), "is damaged: target_embedding.weight is missing"),
        (lambda weights: weights.update(other=torch.ones(1)), "is damaged: it holds 'other', which the network of"),
        (
            lambda weights: weights.update({WEIGHT: torch.ones(16, 9)}),
            f"is damaged: {WEIGHT} has shape (16, 9); expected (16, 16), as config.yaml and the tokenizers say",
        ),
        (lambda weights: weights.clear(), "is damaged: "),
    ],
)
def test_damaged_weights(run, change, message, capfd):
    _change(run, change)
    with pytest.raises(RunError) as caught:
        load(run.path)
    assert str(caught.value).startswith(str(run.model))
    assert message in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run.path), "fade"])
    output, errors = capfd.readouterr()
    assert (ended.value.code, output, errors) == (2, "", f"error: {caught.value}\n")


@pytest.mark.parametrize("keep", [0, 7, 8, 200, -1])
def test_weights_that_were_cut_off(run, keep):
    run.model.write_bytes(run.model.read_bytes()[:keep])
    with pytest.raises(RunError, match=r"^\S+/model\.safetensors is damaged: [^\n]+$"):
        load(run.path)


def test_weights_that_overflow(run):
    _change(run, lambda weights: weights[WEIGHT].fill_(3e38))
    with pytest.raises(RunError, match="the model's output is NaN"):
        load(run.path).predict(["fade"])


def test_tokenizers_of_another_vocabulary(run):
    _change(run, lambda weights: None)
    write_text(run.target, Tokenizer.symbols(["A1 B"]).to_json())
    with pytest.raises(RunError, match=r"target_embedding\.weight has shape \(9, 16\); expected \(5, 16\), as config"):
        load(run.path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 99999, json.dumps({"model": None}).encode()])
def test_damaged_tokenizers(run, content):
    run.source.write_bytes(content)
    with pytest.raises(RunError, match=r"^\S+/run is damaged: \S+/source\.json: not [^\n]+$"):
        load(run.path)


@pytest.mark.parametrize("name", ["config.yaml", "source.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file(run, name):
    (run.path / name).unlink()
    (run.path / name).mkdir()
    with pytest.raises((RunError, ConfigError), match=rf"{name}[^\n]* [Ii]s a directory"):
        load(run.path)


def test_a_network_that_no_machine_can_hold(run):
    run.config.write_text(run.config.read_text().replace("embed_dim: 16", f"embed_dim: {10**12}"))
    with pytest.raises(ConfigError, match=r"model: its weights would need [\d,]+ EB, and this machine has [\d,]+ GB"):
        load(run.path)


def test_a_beam_that_no_machine_can_hold(run):
    with pytest.raises(
        InputError, match=r"beam is 10,000,000,000,000: its scores would need [\d,]+ TB, and this machine has"
    ):
        load(run.path).predict(["fade"], beam=10**13)
