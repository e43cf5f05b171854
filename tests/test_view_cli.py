"""`clearhead view` from the command line: what a model on disk read is served on a page; and what cannot be."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest
import torch

from clearhead.cli import main
from clearhead.view import read, scene
from foreign_models import BY_NAME, transformers

tokenizers = pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat because it was tired"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a small GPT-2 and its tokenizer in it, and a model of images."""
    folder = tmp_path_factory.mktemp("view")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.train_from_iterator([TEXT], tokenizers.trainers.WordLevelTrainer(special_tokens=["<unk>", "\u200b\x07"]))
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    BY_NAME["gpt2"].make("sdpa", vocab_size=len(words)).save_pretrained(folder / "gpt2")
    words.save_pretrained(folder / "gpt2")
    BY_NAME["vit"].make("sdpa").save_pretrained(folder / "vit")
    (folder / "long.txt").write_text("the " * 80)
    (folder / "empty.txt").write_text(" \n")
    return folder


@pytest.fixture
def clearhead(models, monkeypatch, capfd):
    """Runs a command beside the models: its status, standard output and standard error."""
    monkeypatch.chdir(models)

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return run


def test_a_page_is_served_until_ctrl_c(models):
    arguments = ["view", "gpt2", "--text", TEXT, "--port", "0", "--no-open"]
    options = {
        "cwd": models,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": dict(os.environ),
    }
    with subprocess.Popen([sys.executable, "-m", "clearhead.cli", *arguments], **options) as running:
        try:
            line = running.stdout.readline()
            url = re.match(r"(http://127\.0\.0\.1:\d+/) shows gpt2: GPT2Model; Ctrl-C ends it\n", line)[1]
            ask = build_opener(ProxyHandler({})).open
            told = json.loads(ask(f"{url}api/model").read())
            tile = ask(f"{url}api/tile?layer=1&head=2&level=0&row=0&column=0").read()
            running.send_signal(signal.SIGINT)
            rest, errors = running.communicate(timeout=20)
        finally:
            running.kill()  # where it did not end, the block would wait for it
    assert (running.returncode, rest, errors) == (0, "", "")
    model = transformers.AutoModel.from_pretrained(models / "gpt2", attn_implementation="eager").eval()
    ids = transformers.AutoTokenizer.from_pretrained(models / "gpt2")(TEXT, return_tensors="pt")
    weights = model(**ids, output_attentions=True).attentions[1][0, 2].detach().numpy()
    assert [each["shape"] for each in told["layers"]] == [list(weights.shape)] * len(told["layers"])
    np.testing.assert_allclose(np.frombuffer(tile, "<f4").reshape(weights.shape), weights, rtol=1e-4, atol=1e-6)


def test_tokens_have_their_names_and_what_does_not_show_is_spelt_out(models):
    seen = read(models / "gpt2", TEXT)
    assert seen.tokens(0, "keys", 0, 3) == ["the", "cat", "sat"]
    assert read(models / "gpt2", tokens=[1, 1]).tokens(0, "rows", 0, 2) == [r"\u200b\x07"] * 2


def test_of_a_long_text_some_rows_are_measured_while_the_model_runs(models, monkeypatch):
    monkeypatch.setattr(scene, "LONG", 8)
    monkeypatch.setattr(scene, "ROWS", 3)
    seen = read(models / "gpt2", TEXT, layers=["h.1.*"]).seen
    assert [call.name for call in seen] == ["h.1.attn"]
    assert seen[0].statistics.entropy.shape[-1] == 3
    assert seen[0].map.weights().shape[-1] == len(TEXT.split())
    torch.testing.assert_close(seen[0].map.weights().sum(-1), torch.ones(seen[0].shape[:3]))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt2"], "nothing to read was given: give one of --text, --file"),
        (["gpt2", "--text", " "], "the text is empty"),
        (["gpt2", "--file", "empty.txt"], "empty.txt: there is no text in it"),
        (["gpt2", "--file", "none.txt"], "none.txt: no such file or directory"),
        (["gpt2", "--file", "long.txt"], "the text has 80 tokens, and the model positions for 64: shorten it"),
        (["gpt2", "--text", "the", "--file", "long.txt"], "--text and --file were given: give one of them"),
        (["gpt2", "--text", "the", "--layers", "h.7"], "layers: GPT2Model has no module 'h.7'"),
        (["gpt2", "--text", "the", "--host", "192.0.2.1"], "host '192.0.2.1' is no address of this machine"),
        (["vit", "--text", "the"], "ViTModel does not read text"),
        (["nothing", "--text", "the"], "nothing does not exist"),
    ],
)
def test_wrong_input_is_one_line(clearhead, arguments, says):
    status, output, errors = clearhead("view", "--no-open", "--port", "0", *arguments)
    assert (status, output) == (2, "")
    assert errors.startswith(f"error: {says}")
    assert errors.count("\n") == 1


def test_a_port_in_use_is_one_line_that_says_the_next_one(clearhead):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, errors = clearhead("view", "gpt2", "--text", "the", "--port", str(port))
    assert status == 2
    assert re.fullmatch(rf"error: port {port} is in use; --port \d+ is free, and --port 0 takes any\n", errors)
