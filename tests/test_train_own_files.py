"""Training on people's own files, from the command line to predictions, and what becomes of wrong input on the way."""

import gzip
import io
import json
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clearhead.cli import main
from clearhead.data import Tokenizer
from clearhead.errors import ConfigError, DataError, RunError
from clearhead.train import load, read_config, train
from clearhead.train.folder import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = [
    "data.batch_tokens=256", "data.tokenizer.size=300", "model.embed_dim=16", "model.num_heads=2", "model.layers=1",
    "model.max_length=24", "model.dropout=0", "train.precision=float32", "train.duration=8 steps",
    "train.evaluations=2", "train.validation_samples=2", "train.average=1", "decode.beam=1",
]  # fmt: skip
NOUNS = ["dog", "cat", "Straße", "犬", "собака", "naïve"]
VERBS = ["runs", "sleeps", "läuft", "眠る"]


def pairs(count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        noun, verb = draw.choice(NOUNS), draw.choice(VERBS)
        yield f"{noun} {verb}", f"{verb} {noun}"


def tsv(path, rows):
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """train.tsv, valid.tsv, and the same as parallel files."""
    monkeypatch.chdir(tmp_path)
    for name, count, seed in (("train", 120, 0), ("valid", 8, 1)):
        rows = list(pairs(count, seed))
        tsv(tmp_path / f"{name}.tsv", rows)
        for side, ending in enumerate(("a", "b")):
            with gzip.open(tmp_path / f"{name}.{ending}.gz", "wb") as file:
                file.write("".join(row[side] + "\n" for row in rows).encode())
    return tmp_path


def command(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def trained(name, *settings, resume=False, **files):
    chosen = [f"data.{split}={paths}" for split, paths in files.items()]
    return train("seq2seq", [*SMALL, *chosen, *settings], name, resume=resume, say=lambda _: None)


FILES = {"train": "train.tsv", "valid": "valid.tsv"}


def test_one_command_trains_scores_and_predicts(folder, capsys, monkeypatch):
    options = [part for value in SMALL for part in ("--set", value)]
    code = command("train", "seq2seq", "--train", "train.a.gz,train.b.gz", "--valid", "valid.a.gz,valid.b.gz",
                   "--name", "own", *options)  # fmt: skip
    said = capsys.readouterr().err
    assert code == 0, said
    assert "122 examples" in said  # 2 of them with a token spelled by bytes
    scores = json.loads((folder / "runs/own/scores.json").read_text())
    assert scores["split"] == "valid"
    assert said.count("judged as exact: --set score=… says otherwise\n") == 1
    assert load("runs/own").config.score == "exact"
    assert "parameters; train.a.gz and train.b.gz, 8 steps" in (folder / "runs/own/report.html").read_text()
    kept = json.loads((folder / "runs/own/data.json").read_text())
    assert kept["pairs"] == {"train": 120, "valid": 8}
    assert not (folder / "runs/own/tokens").exists()

    (folder / "sources.txt").write_text("dog runs\ncat  sleeps\n犬 眠る\n")
    assert command("predict", "runs/own", "--file", "sources.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == load("runs/own").predict(["dog runs", "cat  sleeps", "犬 眠る"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "sources.txt").read_bytes())))
    assert command("predict", "runs/own", "--file", "-") == 0
    assert capsys.readouterr().out.splitlines() == lines

    (folder / "long.txt").write_text("dog runs\n" + "dog " * 30 + "\n")
    assert command("predict", "runs/own", "--file", "long.txt") == 2
    assert "long.txt:2: 'dog dog" in capsys.readouterr().err
    (folder / "bad.txt").write_text("dog runs\n\ncat\n")
    assert command("predict", "runs/own", "--file", "bad.txt") == 2
    answer = capsys.readouterr()
    assert (answer.out, answer.err) == ("", "error: bad.txt:2: the source is empty; remove the line\n")


def test_sources_are_read_as_they_are_asked_for(folder):
    model = trained("run", "train.duration=1 steps", "train.evaluations=1", **FILES)
    read = []

    def endless():
        while True:
            read.append(1)
            yield "dog runs"

    found = model.predict_each(endless())
    assert [next(found)[0] for _ in range(3)] == ["dog runs"] * 3
    assert len(read) <= 1024


def test_a_resumed_run_is_the_run_that_was_never_stopped(folder):
    trained("whole", **FILES)
    from tiny_task import at_batch

    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    with at_batch(6, kill), pytest.raises(Killed):
        trained("parts", **FILES)
    os.utime("train.tsv")  # another date is no other file
    trained("parts", resume=True, **FILES)
    whole, parts = (load_file(RunFolder(f"runs/{name}").model) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    ("change", "said"), [("append", "train.tsv has changed since"), ("remove", "cannot find what the run was started")]
)
def test_files_that_changed_are_not_resumed_from(change, said, folder, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("clearhead.train.run._fit", stop)
    with pytest.raises(KeyboardInterrupt):
        trained("run", **FILES)
    if change == "append":
        with open("train.tsv", "a") as file:
            file.write("x\ty\n")
    else:
        (folder / "train.tsv").unlink()
    assert command("train", "seq2seq", "--name", "run", "--resume") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_scores_say_when_files_have_changed_or_cannot_be_found(folder, capsys, tmp_path_factory, monkeypatch):
    trained("run", "train.duration=1 steps", "train.evaluations=1", test="valid.a.gz,valid.b.gz", **FILES)
    before = load("runs/run")
    os.utime("valid.a.gz")  # another date is no other file
    (folder / "train.tsv").write_text("x\ty\n")  # which is not scored
    assert command("evaluate", "runs/run", "--json") == 0
    answer = capsys.readouterr()
    assert answer.err == ""
    shutil.copy("train.a.gz", "valid.a.gz")
    shutil.copy("train.b.gz", "valid.b.gz")
    assert command("evaluate", "runs/run", "--json") == 0
    changed = capsys.readouterr()
    for file in ("valid.a.gz", "valid.b.gz"):
        assert f"{file} has changed since the run was started (" in changed.err
    assert changed.err.count("\n") == changed.err.count(": the scores are of what it holds now\n") == 2
    assert json.loads(changed.out)["examples"] > json.loads(answer.out)["examples"]

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move("runs/run", elsewhere / "run")
    monkeypatch.chdir(elsewhere)
    assert command("evaluate", "run") == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: cannot find what the run was started with in {folder}: valid.a.gz (data.test), valid.b.gz "
        "(data.test); run this in that folder, put them back, or write in run/config.yaml where they are now\n"
    )
    config = Path("run/config.yaml")
    config.write_text(re.sub(r"(?m)^  - valid\.([ab])\.gz$", rf"  - {folder}/valid.\1.gz", config.read_text()))
    assert command("evaluate", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(changed.out)
    assert before.predict(["dog runs"]) == load("run").predict(["dog runs"])


@pytest.mark.parametrize("kind", ["bytes", "characters", "unigram", "words"])
def test_every_kind_of_tokenizer_trains(kind, folder):
    chosen = (f"data.source_tokenizer={kind}", "train.duration=1 steps", "train.evaluations=1", "model.max_length=40")
    model = trained(kind, *chosen, **FILES)
    text = "unseen 漢 words"
    assert model.source_tokenizer.decode(model.source_tokenizer.encode([text])[0]) == text
    assert len(model.predict([text])) == 1


def test_one_vocabulary_for_both_sides(folder):
    model = trained("run", "data.tokenizer.joint=true", "model.share_embeddings=true", **FILES)
    assert model.source_tokenizer.to_json() == model.target_tokenizer.to_json()
    assert model.module.source_embedding is model.module.target_embedding
    assert load("runs/run").predict(["dog runs"]) == model.predict(["dog runs"])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            ["model.share_embeddings=true"],
            "model.share_embeddings: needs one vocabulary: set data.tokenizer.joint=true",
        ),
        (["data.tokenizer.joint=true", "data.source_tokenizer=words"], "a joint tokenizer has no sides"),
        (["data.tokenizer.joint=true", "data.lowercase=true"], "lowercase must be false"),
        (["data.train=a,b,c"], "one file of pairs is needed, or two parallel files with a comma between"),
        (["data.source=cmudict", "data.train=a.tsv"], "exclude each other"),
        (["data.tokenizer=bqe"], "data.tokenizer.kind"),
        (["data.tokeniser.size=3"], "did you mean 'data.tokenizer"),
    ],
)
def test_settings_that_cannot_be(settings, problem):
    with pytest.raises(ConfigError) as caught:
        read_config("seq2seq", settings)
    assert problem in str(caught.value)


def test_files_are_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train: a file of pairs is needed, .*: give --train"):
        train("seq2seq", name="none", runs=tmp_path)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("line", "settings", "said"),
    [
        ("a\tb\tc", [], "train.tsv:121: 3 columns, not 2"),
        ("a " * 20 + "\tb", ["model.max_length=12"], "train.tsv:121: the source has"),
    ],
)
def test_what_is_refused_leaves_no_run(line, settings, said, folder):
    trained("old", "train.duration=1 steps", "train.evaluations=1", **FILES)
    with open("train.tsv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError) as caught:
        trained("new", *settings, **FILES)
    assert said in str(caught.value)
    assert not (folder / "runs/new").exists()


def test_a_tokenizer_of_another_run_is_refused(folder):
    trained("run", "train.duration=1 steps", "train.evaluations=1", **FILES)
    other = Tokenizer.train("bpe", [target for _, target in pairs(99, 5)], 300)
    RunFolder("runs/run").target.write_text(other.to_json())
    with pytest.raises(RunError, match=r"target\.json is not the tokenizer that this model was trained with"):
        load("runs/run")
