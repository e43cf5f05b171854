"""Wrong input to every command: one line that says what to write instead, status 2, and nothing made or changed."""

import errno
import io
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
import torch

from clearhead.cli import main, models, unexpected
from clearhead.data import Tokenizer
from clearhead.train.folder import RunFolder, write_text
from clearhead.train.model import Model, build
from tiny_task import small

pytestmark = pytest.mark.usefixtures("unchecked", "one_thread")

LONG, FOREIGN = "x" * 300, "\udcff"
"""A name longer than any file may have, and a byte that is no UTF-8 as Python hands it on in arguments."""
SHORT = {"@L": LONG, "@S": FOREIGN, "@0": "\0", "@E": ""}

TABLE = """
# what is not a command
nope                                              | No such command 'nope'
--nope                                            | No such option: --nope
@E                                                | No such command ''
@L                                                | No such command 'xxx
@S                                                | No such command
predict run @0                                    | argument 3 holds a zero byte: leave it out
bench                                             | bench needs a command: attention, statistics,
data                                              | data needs a command: check

# train
train                                             | Missing argument 'TASK|CONFIG.yaml'
train @E                                          | unknown task '' (known: g2p, seq2seq)
train @L                                          | unknown task 'xxx
train @S                                          | unknown task '\\udcff'
train a.tsv                                       | a configuration file ends in .yaml
train @L.yaml                                     | .yaml: file name too long
train @S.yaml                                     | .yaml: no such file or directory
train g2p extra                                   | unexpected extra argument
train g2p --set @E                                | --set : write key=value, such as model.layers=4
train g2p --set a-b=1                             | write key=value
train g2p --set @S=1                              | write key=value
train g2p --set seed=@L                           | seed: must be a whole number, not 'xxx
train g2p --set model.pattern=@L                  | pattern 'xxx
train g2p --set data.source=cmudikt               | unknown data source 'cmudikt'; did you mean 'cmudict'?
train g2p --name @L                               | has 300 bytes: 200 are possible
train g2p --name ..                               | --name '..' begins with a dot
train g2p --name @E                               | a name is needed
train g2p --name @S                               | characters that cannot be printed
train g2p --minutes soon                          | '--minutes': must be a number, not 'soon'
train g2p --minutes 0                             | must be greater than 0
train g2p --minutes nan                           | write a duration as '5 minutes'
train g2p --minutes 1e400                         | write a duration as '5 minutes'
train g2p --seed 1.5                              | '--seed': must be a whole number, not '1.5'
train g2p --seed -1                               | seed: must be at least 0, not -1
train g2p --seed 99999999999999999999             | seed: must be less than 9223372036854775808
train g2p --port 80                               | --port belongs to --view
train g2p --view --port -1                        | port -1 is none: write one from 1 to 65535
train g2p --view --port 99999                     | port 99999 is none
train g2p --view --find-learning-rate             | leave one of them out
train g2p --json                                  | --json belongs to --find-learning-rate
train g2p --resume --overwrite                    | exclude each other
train g2p --resume --name nothing                 | runs/nothing does not exist
train g2p --find-learning-rate --set train.lay=1  | unknown key 'train.lay'
train seq2seq                                     | give --train
train seq2seq --train a.tsv                       | give --valid
train seq2seq --train none.tsv --valid a.tsv      | none.tsv: no such file or directory
train seq2seq --train a.tsv --valid none.tsv      | none.tsv: no such file or directory
train seq2seq --train @L.tsv --valid a.tsv        | file name too long
train seq2seq --train @S --valid a.tsv            | U+DCFF is not allowed
train seq2seq --train folder.tsv --valid a.tsv    | folder.tsv: is a directory
train seq2seq --train dangling.tsv --valid a.tsv  | dangling.tsv: no such file or directory
train seq2seq --train empty.tsv --valid a.tsv     | empty.tsv: an empty file
train seq2seq --train a.tsv,a.tsv,a.tsv --valid b | one file of pairs is needed
train seq2seq --train a.tsv --valid a.tsv --set data.source_column=@L | there is no column 'xxx
train seq2seq --train a.tsv --valid a.tsv --set data.tokenizer.size=1000000000000 | and this machine has

# evaluate and predict
evaluate                                          | Missing argument 'RUN'
evaluate @E                                       | no run is there
evaluate @L                                       | file name too long
evaluate @S                                       | does not exist
evaluate a.tsv                                    | no run is there
evaluate run --beam 0                             | '--beam': must be at least 1, not '0'
evaluate run --beam x                             | '--beam': must be a whole number, not 'x'
evaluate run --beam 99999999999999                | its scores would need
predict @L abc                                    | file name too long
predict run @E                                    | text 1
predict run @S                                    | text 1: not UTF-8 (byte 0xFF)
predict run @L                                    | has 300 tokens, the model reads 12
predict run --file @L                             | file name too long
predict run --file @E                             | no such file or directory
predict run --file folder.tsv                     | folder.tsv: is a directory
predict run --file dangling.tsv                   | dangling.tsv: no such file or directory
predict run abc --n-best 0                        | '--n-best': must be at least 1, not '0'
predict run abc --heatmap @L.png                  | file name too long
predict run abc --heatmap @E                      | is a folder: give the name of a file
predict run abc --heatmap none/x.png              | there is no folder none; make it
predict run abc --heatmap a.tsv/x.png             | not a directory
predict run abc --heatmap x.doc                   | unknown kind of picture 'doc'

# inspect and view
inspect                                           | Missing argument 'RUN_OR_MODEL'
inspect @E --text a                               | holds no model
inspect @L --text a                               | file name too long
inspect @S --text a                               | does not exist
inspect a.tsv --text a                            | is a file; give the folder that it is in
inspect run                                       | nothing to read was given
inspect run --text @E                             | the text is empty
inspect run --text @S                             | bytes that are no UTF-8
inspect run --text @L                             | has 300 tokens
inspect run --text a --target @S                  | bytes that are no UTF-8
inspect run --file @L                             | file name too long
inspect run --file folder.tsv                       | is a directory
inspect run --text a --layers nope                | has no module 'nope'
inspect run --text a --layers @E                  | layers: a path is empty
inspect run --text a --head @E                    | such as encoder.layers.0.attention:0
inspect run --text a --head @L                    | write the layer and the number
inspect run --text a --out @L                     | file name too long
inspect run --text a --out a.tsv                  | a.tsv is a file: choose another --out
inspect run --text a --out a.tsv/x                | not a directory
inspect run --text a --out none/x.html            | there is no folder none
inspect run --tokens x                            | write whole numbers with commas between
view none --port 0 --no-open                      | none does not exist
view @L --port 0 --no-open                        | file name too long
view run --text a --port -5 --no-open             | port -5 is none
view run --text a --port x --no-open              | '--port': must be a whole number, not 'x'
view run --text a --port 0 --host @L --no-open    | is no address of this machine
view run --text a --port 0 --host @S --no-open    | is no address of this machine
view run --text @S --port 0 --no-open             | bytes that are no UTF-8
view run --file @L --port 0 --no-open             | file name too long
view run --text a --layers @E --port 0 --no-open  | layers: a path is empty

# data, advise, calibrate, demo
data check                                        | Missing argument
data check a.tsv a.tsv a.tsv a.tsv                | 4 files: give those of train
data check a.tsv --set model.layers=0             | model.layers: must be at least 1, not 0
advise                                            | Missing option '--length'
advise --length 0 --embed-dim 64 --heads 4        | length is 0; it must be at least 1
advise --length 64 --embed-dim 65 --heads 4       | write --heads 5
advise --length 64 --embed-dim 64 --heads 4 --device @L    | unknown device 'xxx
advise --length 64 --embed-dim 64 --heads 4 --memory many  | write a size such as 2GB
advise --length 64 --embed-dim 64 --heads 4 --seconds nan  | seconds positive
advise --length 9999999999999 --embed-dim 64 --heads 4     | its blocks of pairs would need
calibrate --device gpu                            | unknown device 'gpu'; did you mean 'cpu'?
calibrate --rounds 0                              | '--rounds': must be at least 1, not '0'
demo @L                                           | unknown story 'xxx
demo collapse --seed 99999999999999999999         | it must be at least 0 and below 2**63
demo collapse --out a.tsv                         | --out a.tsv cannot be written: not a directory
demo collapse --out @L                            | file name too long

# bench
bench attention --pattern @L                      | pattern 'xxx
bench attention --pattern @E                      | is not a pattern
bench attention --length 0                        | length is 0; it must be at least 1
bench attention --length 99999999999999           | its four tensors would need
bench attention --dtype @L                        | unknown dtype 'xxx
bench attention --deviation inf                   | deviation is inf; it must be positive
bench attention --out a.tsv                       | --out a.tsv cannot be written
bench statistics --only nope                      | unknown arm 'nope'
bench patterns --only nope                        | unknown pattern 'nope'
bench memory --pattern window(-1)                 | before is -1
bench scaling --points 99999                      | cannot be fitted
bench watch --length 10000000000                  | eager attention and the model would need
bench watch --layers 0                            | '--layers': must be at least 1, not '0'
bench monitor --rounds 0                          | '--rounds': must be at least 1, not '0'
bench train --embed-dim 7                         | num_heads (4) must divide embed_dim (7)
bench train --dropout nan                         | dropout: must be a number, not nan
bench train --dropout abc                         | '--dropout': must be a number, not 'abc'
bench train --layers 1000000000                   | its weights would need
bench train --pairs 99999999999999                | pairs would need
bench train --dtype float64                       | training is timed in float32 or bfloat16
"""
CASES = [
    [part.strip() for part in line.rsplit(" | ", 1)]
    for line in TABLE.splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model that was never trained, and some files."""
    place = tmp_path_factory.mktemp("wrong")
    run, config = RunFolder(place / "run"), small()
    run.path.mkdir()
    source, target = Tokenizer.characters(["abcdef"]), Tokenizer.symbols(["A1 B C D E1 F"])
    torch.manual_seed(0)
    Model(build(config, source, target), source, target, config).save(run)
    run.write_config(config)
    write_text(run.source, source.to_json())
    write_text(run.target, target.to_json())
    (place / "a.tsv").write_text("".join(f"ab{i}\tcd{i}\n" for i in range(20)))
    (place / "empty.tsv").touch()
    (place / "folder.tsv").mkdir()
    (place / "dangling.tsv").symlink_to("nowhere")
    return place


def _state(folder):
    """What is there, and when it was written; locks hold nothing."""
    files = (path for path in folder.rglob("*") if path.suffix != ".lock" and path.name != "runs")
    return {path: path.lstat().st_mtime_ns for path in files}


@pytest.fixture
def clearhead(folder, monkeypatch, capfd):
    """Runs a command in the folder: its status, standard output and standard error."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(("command", "message"), CASES, ids=[command for command, _ in CASES])
def test_wrong_input_is_one_line_and_makes_nothing(clearhead, folder, command, message):
    arguments = [re.sub("@[LS0E]", lambda short: SHORT[short[0]], word) for word in shlex.split(command)]
    before = _state(folder)
    status, output, errors = clearhead(*arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith("error: ")
    assert message in errors
    assert not re.search(r"[Ii]nput should|unable to parse|Traceback|Errno", errors)
    assert _state(folder) == before


def _fails(error):
    def predict_each(*_, **__):
        raise error

    return predict_each


def test_the_unexpected_is_one_line_and_a_file_with_the_details(clearhead, monkeypatch, tmp_path):
    monkeypatch.setattr(unexpected.tempfile, "NamedTemporaryFile", partial(NamedTemporaryFile, dir=tmp_path))
    monkeypatch.setattr(Model, "predict_each", _fails(RuntimeError("first\nsecond " + "x" * 999)))
    status, output, errors = clearhead("predict", "run", "abc")
    assert (status, output, errors.count("\n")) == (1, "", 1)
    found = re.fullmatch(r"error: unexpected RuntimeError: first second x+…; the details are in (\S+)\n", errors)
    assert found
    assert len(errors) < 400
    details = Path(found[1]).read_text()
    assert Path(found[1]).parent == tmp_path
    assert f"torch {torch.__version__}" in details
    assert "in predict_each" in details
    monkeypatch.setattr(unexpected.tempfile, "NamedTemporaryFile", partial(NamedTemporaryFile, dir=tmp_path / "none"))
    status, _, errors = clearhead("predict", "run", "abc")
    assert (status, errors.count("\n")) == (1, 1)
    assert "; the details cannot be written (" in errors


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (MemoryError(), 1, "error: there is not enough memory for this; the details are in "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), 1, "error: there is not enough memory for"),
        (ModuleNotFoundError("x", name="lightning.pytorch"), 2, "error: 'lightning' is not installed: pip install "),
        (ModuleNotFoundError("no nothing", name="nothing"), 1, "error: unexpected ModuleNotFoundError: no nothing; "),
        (OSError(errno.EIO, "Input/output error", "run/x"), 2, "error: run/x: input/output error\n"),
        (OSError(errno.EIO, "Input/output error", "/other"), 1, "error: unexpected OSError: "),
        (OSError(errno.EIO, "Input/output error"), 1, "error: unexpected OSError: "),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_ends_a_command(clearhead, monkeypatch, tmp_path, error, status, message):
    monkeypatch.setattr(unexpected.tempfile, "NamedTemporaryFile", partial(NamedTemporaryFile, dir=tmp_path))
    monkeypatch.setattr(Model, "predict_each", _fails(error))
    ended, output, errors = clearhead("predict", "run", "abc")
    assert (ended, output, errors.count("\n")) == (status, "", bool(message)), errors
    assert errors.startswith(message)
    assert len(os.listdir(tmp_path)) == (status == 1)


@pytest.mark.parametrize(
    "arguments",
    [["evaluate", "run"], ["inspect", "run", "--text", "a"], ["train", "g2p"], ["demo", "collapse", "--json"]],
)
def test_ctrl_c_is_130_in_every_command(clearhead, monkeypatch, arguments):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "_own_files", stopped)
    monkeypatch.setattr("clearhead.train.model.load", stopped)
    monkeypatch.setattr("clearhead.inspect.folders.open_model", stopped)
    monkeypatch.setattr("clearhead.inspect.look.open_model", stopped)
    monkeypatch.setattr("clearhead.demo.story.Words.read", stopped)
    status, output, errors = clearhead(*arguments)
    assert (status, output.strip(), errors.strip()) == (130, "", "")
