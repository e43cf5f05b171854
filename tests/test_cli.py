import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from clearhead import __version__
from clearhead.cli import main
from clearhead.inspect import open_model
from clearhead.inspect.models import Question
from clearhead.train import load
from clearhead.view import read
from tiny_task import SMALL

TINY = Path(__file__).with_name("tiny_task.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the run `run` in it, trained by the command line."""
    folder, before = tmp_path_factory.mktemp("cli"), Path.cwd()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.chdir(folder)
    settings = [part for setting in SMALL for part in ("--set", setting)]
    with pytest.raises(SystemExit) as ended:
        main(["train", "g2p", *settings, "--name", "run", "--seed", "3", "--set", "model.layers=2"])
    os.chdir(before)
    torch.set_num_threads(threads)
    assert ended.value.code == 0
    return folder / "runs"


@pytest.fixture
def clearhead(runs, monkeypatch, capfd):
    """Runs a command beside the runs: its status, standard output and standard error."""
    monkeypatch.chdir(runs.parent)

    def run(*arguments: str, standard_input: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(standard_input)))
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return run


def test_settings_reach_the_run(runs):
    config = load(runs / "run").config
    assert (config.seed, config.model.layers, str(config.train.duration)) == (3, 2, "12 steps")


def test_one_line_a_word_on_standard_output_alone(clearhead, runs, tmp_path):
    words = ["fade", "bead", "abc"]
    expected = "".join(f"{text}\n" for text in load(runs / "run").predict(words))
    (tmp_path / "words.txt").write_text("bead\nabc\n")
    assert clearhead("predict", "runs/run", *words) == (0, expected, "")
    assert clearhead("predict", "runs/run", "fade", "--file", str(tmp_path / "words.txt")) == (0, expected, "")
    assert clearhead("predict", "runs/run", standard_input=b"fade\nbead\r\nabc") == (0, expected, "")


def test_characters_never_seen_are_said_on_standard_error(clearhead):
    status, output, errors = clearhead("predict", "runs/run", "fadé", "x")
    assert (status, len(output.splitlines())) == (0, 2)
    assert errors == "never seen in training, and read as bytes: é x\n"


def test_several_best_ones(clearhead):
    _, output, _ = clearhead("predict", "runs/run", "fade", "abc", "--n-best", "3")
    assert [len(line.split("\t")) for line in output.splitlines()] == [3, 3]
    _, output, _ = clearhead("predict", "runs/run", "fade", "--n-best", "2", "--beam", "4", "--json")
    found = json.loads(output)
    assert found["source"] == "fade"
    assert [set(one) for one in found["predictions"]] == [{"text", "score", "finished"}] * 2


def test_a_prediction_is_one_line_whatever_it_holds(clearhead, monkeypatch):
    said = "a\nb\r\tc\u2028d\x85e \\n"
    monkeypatch.setattr("clearhead.data.Tokenizer.decode", lambda *_: said)
    _, output, _ = clearhead("predict", "runs/run", "fade", "bead", "--n-best", "2")
    written = "a\\nb\\r\\tc\\u2028d\\x85e \\n"
    assert output.splitlines() == [f"{written}\t{written}"] * 2
    _, output, _ = clearhead("predict", "runs/run", "fade", "bead", "--json")
    assert [json.loads(line)["predictions"][0]["text"] for line in output.splitlines()] == [said] * 2


def test_a_heatmap(clearhead, tmp_path):
    picture = tmp_path / "out.png"
    status, output, _ = clearhead("predict", "runs/run", "fade", "--heatmap", str(picture))
    assert (status, len(output.splitlines())) == (0, 1)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    status, output, errors = clearhead("predict", "runs/run", "fade", "abc", "--heatmap", str(picture))
    assert (status, output, errors) == (2, "", "error: --heatmap draws one text, not 2\n")


def test_what_the_heads_of_a_run_do_with_a_word(clearhead, runs, tmp_path):
    out = tmp_path / "inspected"
    status, output, errors = clearhead("inspect", "runs/run", "--text", "fade", "--out", str(out))
    assert (status, errors) == (0, "")
    assert "reads 4 tokens: f a d e" in output
    record = json.loads((out / "statistics.json").read_text())
    model = load(runs / "run")
    said = model.predict(["fade"])[0]
    assert record["tokens"] == {
        "source": ["f", "a", "d", "e"],
        "target": ["begin", *said.split()],
        "predicted": [*said.split(), "end"],
    }
    maps = model.maps("fade")
    assert list(dict.fromkeys(head["name"] for head in record["heads"])) == list(maps)
    for head in record["heads"]:
        weights = maps[head["name"]].weights()[0, head["head"]].double()
        entropy = float(torch.special.entr(weights).sum(-1).mean())
        assert head["entropy"]["mean"] == pytest.approx(entropy, rel=1e-4)
    sides = {f"{what}-{side}.png" for what in ("heads", "rollout") for side in ("encoder", "decoder")}
    assert sides | {"heads-cross.png"} <= set(record["files"])


def test_a_pronunciation_is_read_as_given(clearhead):
    _, output, _ = clearhead("inspect", "runs/run", "--text", "bead", "--target", "B E1 A1", "--json")
    assert json.loads(output)["tokens"]["predicted"] == ["B", "E1", "A1", "end"]


def test_scores(clearhead, runs):
    status, output, errors = clearhead("evaluate", "runs/run", "--json")
    scores = json.loads(output)
    assert (status, errors) == (0, "")
    assert list(scores) == ["wer", "per", "wer_without_stress", "per_without_stress", "words", "split", "beam"]
    saved = json.loads((runs / "run/scores.json").read_text())
    assert {key: saved[key] for key in scores} == scores
    _, output, _ = clearhead("evaluate", "runs/run", "--beam", "1")
    assert "33.89%  word error rate of Phonetisaurus" in output
    assert len(output.splitlines()) == 6


def test_the_weights_of_a_run_are_known_before_it_runs(runs):
    model = open_model(runs / "run")
    reading = model.read(Question("fade", "B E1 A1"))
    seen = model.look(reading)
    assert model.weights(reading) == sum(call.shape[1] * call.shape[2] * call.shape[3] for call in seen)
    some = model.look(reading, ["decoder.layers.0.cross_attention"])
    assert model.weights(reading, ["decoder.layers.0.cross_attention"]) <= some[0].shape[1] * 4 * some[0].shape[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'?"),
        (["train", "g2q"], "unknown task 'g2q'; did you mean 'g2p'?"),
        (["train", "g2p", "--sed", "1"], "--seed"),
        (["train", "g2p", "--set", "train.layers=2"], "did you mean 'model.layers'?"),
        (["train", "g2p", "--minutes", "-1"], "train.duration"),
        (["train", "g2p", "--minutes", "soon"], "--minutes"),
        (["train", "g2p", "--name", "run"], "go on with --resume, choose another --name, or replace it by --overwrite"),
        (["train", "g2p", "--resume"], "runs/g2p does not exist"),
        (["predict", "runs/none", "a"], "runs/none does not exist"),
        (["predict", "runs/run", ""], "text 1: is empty; remove it"),
        (["predict", "runs/run", "abcdefabcdefabcdef"], "has 18 tokens, the model reads 12"),
        (["predict", "runs/run", "a", "--n-best", "3", "--beam", "2"], "1 <= n_best <= beam"),
        (["predict", "runs/run", "--file", "none.txt"], "none.txt: no such file"),
        (["predict", "runs/run"], "standard input: an empty file"),
        (["predict"], "RUN"),
        (["predict", "runs/run", "fade", "--heatmap", "none/a.png"], "--heatmap none/a.png: there is no folder none"),
        (["predict", "runs/run", "fade", "--heatmap", "a.xyz"], "unknown kind of picture 'xyz': write .png, .svg or"),
        (["predict", "runs/run", "fade", "--heatmap", "runs"], "--heatmap runs is a folder: give the name of a file"),
        (["bench", "memory", "--length", "8", "--out", "/proc/none"], "--out /proc/none cannot be written"),
        (["inspect", "runs/none", "--text", "a"], "runs/none does not exist"),
        (["inspect", "runs/run", "--text", "abcdefabcdefabcdef"], "has 18 tokens, the model reads 12"),
        (["inspect", "runs/run", "--text", "a", "--target", "XX"], "unknown symbol 'XX'"),
        (["inspect", "runs/run", "--tokens", "1,2"], "reads words: give --text"),
        (["inspect", "runs/run", "--text", "a", "--head", "encoder.layers.0.attention:7"], "has heads 0 … 1"),
        ([], "command"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(clearhead, arguments, message):
    status, output, errors = clearhead(*arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("error: ")
    assert message in errors


def test_what_cannot_be_read_of_standard_input_is_said_and_the_rest_goes_on(clearhead, runs):
    fade, bead = load(runs / "run").predict(["fade", "bead"])
    lines = "\ufefffade\r\n\n".encode() + b"\xff\n" + b"abcdef" * 3 + b"\nbead"
    status, output, errors = clearhead("predict", "runs/run", standard_input=lines)
    assert (status, output.split("\n")) == (2, [fade, "", "", "", bead, ""])
    assert errors.splitlines() == [
        "error: standard input:2: is empty; remove it",
        "error: standard input:3: not UTF-8 (byte 0xFF); write it in UTF-8",
        "error: standard input:4: 'abcdefabcdefabcdef' has 18 tokens, the model reads 12: shorten or truncate it",
    ]
    status, output, _ = clearhead("predict", "runs/run", "--json", standard_input=lines)
    found = [json.loads(line)["predictions"] for line in output.splitlines()]
    assert (status, [len(one) for one in found]) == (2, [1, 0, 0, 0, 1])


@pytest.mark.parametrize("way", ["pipe", "fifo"])
def test_an_answer_comes_before_the_next_text_is_asked(way, runs, tmp_path):
    """Whoever reads each answer before they write the next text must not wait forever."""
    if way == "fifo":
        os.mkfifo(tmp_path / "texts")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    asked = [] if way == "pipe" else ["--file", str(tmp_path / "texts")]
    with subprocess.Popen(
        [sys.executable, str(TINY), "predict", str(runs / "run"), *asked],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        late = threading.Timer(240, program.kill)  # it would wait forever
        late.start()
        texts = program.stdin if way == "pipe" else open(tmp_path / "texts", "wb")  # noqa: SIM115
        answers = []
        for word in ("fade", "", "bead"):
            texts.write(f"{word}\n".encode())
            texts.flush()
            answers.append(program.stdout.readline().decode())
        texts.close()
        rest = program.stdout.read()
        late.cancel()
    fade, bead = load(runs / "run").predict(["fade", "bead"])
    assert (answers, rest, program.returncode) == ([f"{fade}\n", "\n", f"{bead}\n"], b"", 2)


def _python(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False, **options)


def test_version_and_help_import_no_torch():
    code = (
        "import sys\nfrom clearhead.cli import main\n"
        "try: main([sys.argv[1]])\nfinally: print([m for m in ('torch', 'numpy', 'pydantic') if m in sys.modules])"
    )
    assert _python("-c", code, "--version").stdout.decode() == f"clearhead {__version__}\n[]\n"
    output = _python("-c", code, "--help").stdout.decode()
    assert output.endswith("[]\n")
    assert all(command in output for command in ("train", "evaluate", "predict", "inspect", "demo"))


@pytest.mark.parametrize("command", ["inspect", "demo"])
def test_help_of_a_command_imports_no_torch(command):
    code = (
        "import sys\nfrom clearhead.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    output = _python("-c", code, command, "--help").stdout.decode()
    assert "--out" in output
    assert output.splitlines()[-1] == "[]"


def test_inspecting_a_run_needs_neither_trainer_nor_transformers(runs, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(TINY.parent)!r}); import tiny_task\nfrom clearhead.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([m for m in ('lightning', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = _python("-c", code, "inspect", str(runs / "run"), "--text", "abc", "--json")
    assert done.stdout.decode().splitlines()[-1] == "[]", done.stderr.decode()


def test_benchmarks_of_attention_import_no_training_engine():
    code = (
        "import sys\nfrom clearhead.cli import main\ntry: main(sys.argv[1:])\n"
        "finally: print([m for m in ('lightning', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    done = _python("-c", code, "bench", "memory", "--length", "0")
    assert done.stdout.decode() == "[]\n"
    assert done.stderr.decode().count("\n") == 1


def test_predicting_needs_no_training_engine(runs):
    code = (
        f"import sys; sys.path.insert(0, {str(TINY.parent)!r}); import tiny_task\nfrom clearhead.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print('lightning' in sys.modules)"
    )
    done = _python("-c", code, "predict", str(runs / "run"), "abc")
    assert done.stdout.decode().splitlines()[-1] == "False", done.stderr.decode()


def test_a_reader_that_has_enough_is_no_mistake(runs):
    words = b"abc\n" * 20_000
    command = f"{sys.executable} {TINY} predict {runs / 'run'} --beam 1 | head -n 1"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], input=words, capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.count(b"\n") == 1


def test_a_run_can_be_viewed(runs):
    scene = read(runs / "run", "fade")
    sides = {layer["name"]: (layer["role"], layer["shape"]) for layer in scene.layers()}
    cross = list(sides).index("decoder.layers.1.cross_attention")
    role, (queries, keys) = sides["decoder.layers.1.cross_attention"]
    assert (role, keys) == ("cross", 4)
    assert scene.tokens(cross, "keys", 0, keys) == list("fade")
    assert scene.tokens(cross, "rows", 0, queries)[-1] == "end"
