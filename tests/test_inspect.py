"""`clearhead inspect` on folders that save_pretrained wrote: small random models, tokenizers of a few sentences."""

import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.cells import cell_len
from safetensors.torch import load_file, save_file

from clearhead.cli import main
from clearhead.errors import InputError
from clearhead.inspect import Inspected, inspect, open_model, pages, report
from clearhead.inspect.models import Question
from clearhead.inspect.ranking import ranked
from clearhead.observe import Finding
from foreign_models import BY_NAME, transformers

tokenizers = pytest.importorskip("tokenizers")

SENTENCES = ("the cat sat on the mat because it was tired", "a head of attention reads every token at once")
TEXT = "the cat sat on the mat because it was tired"
CLASSES = {
    "bert": "BertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "marian": "MarianMTModel",
}
PAIRED = ("t5", "marian")


def tokenizer(kind: str):
    """As its architecture would have one: whole words between marks, pieces of bytes, or words and an end."""
    special = ["<pad>", "</s>", "<unk>", "[CLS]"]
    if kind in ("gpt2", "llama", "gemma2"):
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="<unk>"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=special)
        form = "[CLS] $A </s>" if kind == "bert" else "$A </s>"
        marks = [("[CLS]", 3), ("</s>", 1)]
        backend.post_processor = tokenizers.processors.TemplateProcessing(single=form, special_tokens=marks)
    backend.train_from_iterator(SENTENCES, trainer)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a model of each kind in it, each with its tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name, saved in CLASSES.items():
        words = tokenizer(name)
        settings = {"vocab_size": len(words)}
        if name in PAIRED:
            settings |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        foreign = BY_NAME[name]
        made = type(foreign)(name, foreign.config, saved, foreign.settings, sharper=foreign.sharper)
        made.make("eager", **settings).save_pretrained(folder / name)
        words.save_pretrained(folder / name)
    BY_NAME["vit"].make("sdpa").save_pretrained(folder / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    transformers.MambaModel(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=40)
    ).save_pretrained(folder / "mamba")
    return folder


@pytest.fixture
def clearhead(models, tmp_path, monkeypatch, capfd):
    """Runs a command in an empty folder beside models/: its status, standard output and standard error."""
    (tmp_path / "models").symlink_to(models)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return run


def eager(folder: Path, record: dict) -> list[torch.Tensor]:
    """The weights of every layer that the model itself gives out, each (H, Nq, Nk) in float64."""
    saved = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = saved.from_pretrained(folder, attn_implementation="eager").eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = {"input_ids": torch.tensor([words(record["text"])["input_ids"]])}
    if record["tokens"]["target"] is not None:
        inputs["decoder_input_ids"] = torch.tensor([words.convert_tokens_to_ids(record["tokens"]["target"])])
    with torch.no_grad():
        out = model(**inputs, output_attentions=True)
    if record["tokens"]["target"] is None:
        return [weights[0].double() for weights in out.attentions]
    crossed = [each for pair in zip(out.decoder_attentions, out.cross_attentions, strict=True) for each in pair]
    return [weights[0].double() for weights in (*out.encoder_attentions, *crossed)]


@pytest.mark.parametrize("name", CLASSES)
def test_numbers_are_those_of_the_weights_that_the_model_gives_out(clearhead, models, name):
    target = ["--target", "a head reads every token"] if name in PAIRED else []
    status, output, errors = clearhead("inspect", f"models/{name}", "--text", TEXT, *target, "--json")
    assert (status, errors) == (0, "")
    record = json.loads(output)
    entropies = [torch.special.entr(A).sum(-1).mean(-1) for A in eager(models / name, record)]
    reported = [head["entropy"]["mean"] for head in record["heads"]]
    torch.testing.assert_close(torch.tensor(reported).double(), torch.cat(entropies), rtol=1e-4, atol=1e-5)
    assert record["unseen"] == {}


@pytest.mark.parametrize("name", ["gpt2", "marian"])
def test_pictures_and_words_of_a_model(clearhead, name):
    target = ["--target", "a head reads every token"] if name in PAIRED else []
    status, output, errors = clearhead("inspect", f"models/{name}", "--text", TEXT, *target)
    assert (status, errors) == (0, "")
    written = Path("inspected") / name
    record = json.loads((written / "statistics.json").read_text())
    assert sorted(file.name for file in written.iterdir()) == sorted(record["files"])
    sides = {f"-{side}" for side in ("encoder", "decoder", "cross")} if name in PAIRED else {""}
    pictures = {f"heads{side}.png" for side in sides} | {f"rollout{side}.png" for side in sides - {"-cross"}}
    pictures |= {"entropy.png", "max_logit.png"}
    assert pictures <= set(record["files"])
    assert all((written / file).read_bytes().startswith(b"\x89PNG") for file in pictures)
    lines = output.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith(f"models/{name}: {CLASSES[name]}, ")
    assert "layer  head  entropy  sink  max logit  distance  health" in lines
    assert " ".join(lines).count("strongest pairs") == 1


def test_the_strongest_pairs_are_those_of_the_weights(clearhead, models):
    record = json.loads(clearhead("inspect", "models/gpt2", "--text", TEXT, "--json")[1])
    weights = torch.stack(eager(models / "gpt2", record))[:, :, 7:]  # of rows that see at least 8 keys
    names = record["tokens"]["source"]
    assert names[:3] != sorted(names[:3])
    best = weights.flatten(2).max(-1)
    order = best.values.flatten().argsort(descending=True)
    assert [(pair["layer"], pair["head"]) for pair in record["pairs"]] == [
        (f"transformer.h.{i // 4}.attn", i % 4) for i in order.tolist()
    ]
    for pair, i in zip(record["pairs"], order.tolist(), strict=True):
        query, key = divmod(int(best.indices.flatten()[i]), len(names))
        assert (pair["query"], pair["key"]) == (query + 7, key)
        assert (pair["query_token"], pair["key_token"]) == (names[query + 7], names[key])
        assert pair["weight"] == pytest.approx(float(best.values.flatten()[i]), rel=1e-4)


def test_tokens_are_called_by_their_text(models):
    found = inspect(models / "gpt2", "the cät  sat")
    assert found.reading.source is not None
    assert "the" in found.reading.source
    assert not any("Ġ" in name for name in found.reading.source if len(name) > 1)
    assert inspect(models / "bert", "the zebra").reading.source == ["[CLS]", "the", "<unk>", "</s>"]


@pytest.mark.parametrize("name", PAIRED)
def test_without_a_target_it_is_what_the_model_predicts(models, name):
    found = inspect(models / name, TEXT)
    words = transformers.AutoTokenizer.from_pretrained(models / name)
    model = getattr(transformers, CLASSES[name]).from_pretrained(models / name).eval()
    ids = torch.tensor([words(TEXT)["input_ids"]])
    told = model.generate(input_ids=ids, do_sample=False, num_beams=1, max_new_tokens=found.model.longest)[0]
    spoken = words.convert_ids_to_tokens(told)
    assert (found.reading.target, found.reading.predicted) == (spoken[:-1], spoken[1:])
    cross = [call for call in found.seen if call.role == "cross"]
    assert {call.shape[2:] for call in cross} == {(len(spoken) - 1, ids.shape[1])}


def test_a_target_is_shifted_by_its_beginning(models):
    reading = inspect(models / "marian", TEXT, target="the cat").reading
    assert reading.target == ["<pad>", "the", "cat"]
    assert reading.predicted == ["the", "cat", "</s>"]


def test_json_on_standard_output_writes_nothing(clearhead):
    status, output, _ = clearhead("inspect", "models/bert", "--text", TEXT, "--json")
    record = json.loads(output)
    assert (status, output.count("\n"), Path("inspected").exists()) == (0, 1, False)
    assert record["tokens"]["source"] == ["[CLS]", *TEXT.split(), "</s>"]
    assert len(record["heads"]) == 8
    clearhead("inspect", "models/bert", "--text", TEXT, "--out", "here", "--json")
    written = json.loads(Path("here/statistics.json").read_text())
    assert written.pop("made_by") == "clearhead inspect"
    assert {**written, "files": []} == record


def test_a_text_from_a_file(clearhead):
    Path("text.txt").write_text(f"{TEXT}\n")
    from_file = clearhead("inspect", "models/bert", "--file", "text.txt", "--json")
    assert from_file == clearhead("inspect", "models/bert", "--text", TEXT, "--json")


def test_token_numbers_where_there_is_no_tokenizer(clearhead, models):
    shutil.copytree(models / "bert", "bare", ignore=shutil.ignore_patterns("token*"))
    status, output, errors = clearhead("inspect", "bare", "--text", TEXT)
    assert (status, output) == (2, "")
    assert "bare has no tokenizer: add tokenizer.json" in errors
    assert "--tokens 1,2,3" in errors
    status, output, _ = clearhead("inspect", "bare", "--tokens", "3,4,5,1")
    assert status == 0
    assert "reads 4 tokens: 3 4 5 1" in output
    named, _ = inspect("models/bert", tokens=[3, 4, 5, 1]), inspect("bare", tokens=[3, 4, 5, 1])
    assert named.reading.source[0] == "[CLS]"


def test_a_model_of_images(clearhead):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save("picture.png")
    status, output, errors = clearhead("inspect", "models/vit", "--image", "picture.png")
    assert (status, errors) == (0, "")
    assert "reads an image as 17 tokens" in output
    assert Path("inspected/vit/heads.png").exists()


def test_chosen_layers_and_heads(clearhead):
    status, output, _ = clearhead(
        "inspect", "models/bert", "--text", TEXT, "--layers", "*.layer.1.*", "--head", "bert.encoder.layer.1:2"
    )
    assert status == 0
    assert "1 layer, 4 heads" in output
    assert Path("inspected/bert/head-bert.encoder.layer.1.attention.self-2.png").exists()
    assert not Path("inspected/bert/rollout.png").exists()  # which needs all layers


def test_an_earlier_inspection_is_replaced_and_nothing_else(clearhead):
    clearhead("inspect", "models/bert", "--text", TEXT, "--out", "here", "--head", "bert.encoder.layer.1:2")
    drawn = Path("here/head-bert.encoder.layer.1.attention.self-2.png")
    assert drawn.exists()
    Path("here/mine.txt").write_text("mine")
    assert clearhead("inspect", "models/bert", "--text", TEXT, "--out", "here")[0] == 0
    assert not drawn.exists()
    assert Path("here/mine.txt").read_text() == "mine"
    Path("other").mkdir()
    Path("other/mine.txt").write_text("mine")
    refused = "error: other holds other things, such as mine.txt: choose another --out\n"
    assert clearhead("inspect", "models/bert", "--text", TEXT, "--out", "other") == (2, "", refused)
    Path("other/statistics.json").write_text('{"files": ["mine.txt"]}')
    assert clearhead("inspect", "models/bert", "--text", TEXT, "--out", "other")[0] == 2
    assert Path("other/mine.txt").exists()


def test_a_head_in_trouble_is_named_and_drawn(clearhead, models):
    shutil.copytree(models / "bert", "sick")
    weights = load_file("sick/model.safetensors")
    rows = slice(8, 16)  # of head 1
    for part in ("query", "key"):
        weights[f"bert.encoder.layer.1.attention.self.{part}.weight"][rows] *= 60
    save_file(weights, "sick/model.safetensors", {"format": "pt"})
    status, output, _ = clearhead("inspect", "sick", "--text", TEXT)
    said = " ".join(output.split())
    assert status == 0
    assert "alarm: bert.encoder.layer.1.attention.self head 1: largest logit" in said
    assert "what to try: " in said
    assert Path("inspected/sick/head-bert.encoder.layer.1.attention.self-1.png").exists()
    record = json.loads(Path("inspected/sick/statistics.json").read_text())
    assert {(each["layer"], each["head"]) for each in record["findings"] if each["rule"] == "logit explosion"} == {
        ("bert.encoder.layer.1.attention.self", 1)
    }


def test_colours_are_for_terminals(models):
    found = inspect(models / "bert", TEXT)
    assert "\x1b[" not in "".join(report(found, 80))
    coloured = report(found, 80, colour=True)
    assert "\x1b[" in "".join(coloured)
    assert len(coloured) == len(report(found, 80))


class Dangerous:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_pickled_weights_are_refused_unread(clearhead, models, name):
    shutil.copytree(models / "bert", "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
    Path("pickled", name).write_bytes(pickle.dumps(Dangerous()))
    for path in ("pickled", f"pickled/{name}"):
        status, output, errors = clearhead("inspect", path, "--text", TEXT)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert f"{path} holds its weights as {name} and not as safetensors" in errors
        assert "can run any code when it is loaded" in errors
        assert "save_pretrained" in errors
    assert not Path("harm").exists()
    pickle.load(io.BytesIO(Path("pickled", name).read_bytes()))
    assert Path("harm").exists()  # so the test would have noticed


MISTAKES = [
    (["models/none", "--text", "a"], "models/none does not exist"),
    (["models", "--text", "a"], "neither config.yaml with model.safetensors"),
    (["models/bert/config.json", "--text", "a"], "is a file; give the folder"),
    (["models/bert"], "give one of --text, --file, --tokens and --image"),
    (["models/bert", "--text", "a", "--tokens", "1"], "--text and --tokens were given"),
    (["models/bert", "--text", "a", "--file", "b"], "--text and --file were given"),
    (["models/bert", "--file", "none.txt"], "none.txt: no such file"),
    (["models/bert", "--text", " "], "the text is empty"),
    (["models/bert", "--text", "the " * 80], "the text has 82 tokens, and the model positions for 64"),
    (["models/marian", "--text", "the", "--target", "the " * 80], "the target has 81 tokens"),
    (["models/bert", "--tokens", "1,x"], "write whole numbers with commas between"),
    (["models/bert", "--tokens", "1,999"], "token 999 is not in the model's vocabulary, 0 …"),
    (["models/bert", "--text", "a", "--target", "b"], "BertForMaskedLM is none"),
    (["models/bert", "--text", "a", "--layers", "bert.encoder.lair.0"], "did you mean 'bert.encoder.layer.0'?"),
    (["models/bert", "--text", "a", "--layers", "bert.pooler*"], "has no module 'bert.pooler*'"),
    (["models/bert", "--text", "a", "--layers", "bert.embeddings"], "under bert.embeddings"),
    (["models/bert", "--text", "a", "--head", "bert.encoder.layer.0:4"], "has heads 0 … 3"),
    (["models/bert", "--text", "a", "--head", "bert.encoder.layr.0:1"], "did you mean 'bert.encoder.layer.0.att"),
    (["models/bert", "--text", "a", "--head", "3"], "write the layer and the number, such as bert.encoder.layer.0"),
    (["models/bert", "--image", "picture.png"], "BertForMaskedLM does not read images"),
    (["models/vit", "--text", "a"], "ViTModel does not read text"),
    (["models/vit", "--image", "none.png"], "none.png: no such file"),
    (["models/mamba", "--tokens", "1,2"], "no attention was seen in MambaModel"),
    (["models/bert", "--text", "a", "--out", "models/bert"], "models/bert holds other things"),
    ([], "RUN_OR_MODEL"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_status_2(clearhead, arguments, message):
    status, output, errors = clearhead("inspect", *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith("error: ")
    assert message in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "page.html"], "weights of 12 tokens are too many for one page, which holds 100: shorten the text"),
        (
            ["--out", "page.html", "--layers", "bert.encoder.layer.0"],
            "or look at it with `clearhead view`",
        ),
        (["--out", "none/page.html"], "there is no folder none"),
        (["--out", "models/bert/config.json"], "is a file: choose another --out"),
        (["--out", "models/bert/config.json/new"], "cannot be written: not a directory"),
        (["--out", "models/bert/config.json/new.html"], "there is no folder models/bert/config.json"),
        (["--out", "x" * 300], "cannot be written: file name too long"),
        (["--out", "x" * 300 + ".html"], "file name too long"),
        (["--out", "/proc/none"], "cannot be written: "),
        (["--head", "3"], "write the layer and the number"),
        (["--head", "bert.encoder.layer.7:0"], "BertForMaskedLM has no module 'bert.encoder.layer.7'; did you mean"),
    ],
)
def test_what_is_known_before_the_model_runs_is_refused_then(clearhead, monkeypatch, arguments, message):
    def ran(*_, **__):
        raise AssertionError("the model has run")

    monkeypatch.setattr(pages, "LIMIT", 100)
    monkeypatch.setattr(Inspected, "look", ran)
    before = sorted(Path.cwd().iterdir())
    status, output, errors = clearhead("inspect", "models/bert", "--text", TEXT, *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1), errors
    assert message in errors
    assert sorted(Path.cwd().iterdir()) == before


@pytest.mark.parametrize("name", CLASSES)
def test_a_model_has_no_fewer_weights_than_are_known_before_it_runs(models, name):
    model = open_model(models / name)
    reading = model.read(Question(TEXT))
    seen = model.look(reading)
    known = model.weights(reading)
    assert known <= sum(call.shape[1] * call.shape[2] * call.shape[3] for call in seen)
    assert name in PAIRED or known == seen[0].shape[1] * seen[0].shape[2] * seen[0].shape[3]


def test_half_a_model_is_refused(models, tmp_path):
    shutil.copytree(models / "bert", tmp_path / "half")
    weights = load_file(tmp_path / "half/model.safetensors")
    weights.pop("bert.encoder.layer.0.attention.self.query.weight")
    save_file(weights, tmp_path / "half/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"half lacks 1 weights of BertForMaskedLM, such as bert\.encoder\.layer\.0"):
        open_model(tmp_path / "half")
    (tmp_path / "half/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"half/model\.safetensors is no whole safetensors file .*: copy or save it"):
        open_model(tmp_path / "half")


@pytest.mark.parametrize(
    "asking",
    [
        {"attn_implementation": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"_attn_implementation_internal": "kernels-community/flash-attn2"},
        {"attn_implementation": {"text_config": "someone/kernel"}},
        {"text_config": {"attn_implementation": "someone/kernel@main:attend"}},
        {"attn_implementation": "flash_attention_2"},
        {"attn_implementation": 3},
    ],
)
def test_a_configuration_that_asks_for_a_kernel_is_refused(models, tmp_path, asking, monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", None)  # nobody is to ask for anything
    shutil.copytree(models / "bert", tmp_path / "kernel")
    file = tmp_path / "kernel/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | asking))
    with pytest.raises(
        InputError, match=r"kernel/config.json: \S*attn_implementation\S* is .* write 'eager' or 'sdpa'"
    ):
        open_model(tmp_path / "kernel")


def test_an_index_that_leads_out_of_its_folder_is_refused(models, tmp_path):
    folder = tmp_path / "shards"
    shutil.copytree(models / "bert", folder)
    shutil.copy(folder / "model.safetensors", tmp_path / "other.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    index = folder / "model.safetensors.index.json"

    def write(name: object) -> None:
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))

    write("model-00001-of-00001.safetensors")
    assert type(open_model(folder).model).__name__ == "BertForMaskedLM"
    for name in ("../other.safetensors", str(tmp_path / "other.safetensors"), "..", r"..\other.safetensors", "a/../b"):
        write(name)
        with pytest.raises(
            InputError, match=r"index.json says that weights are in .*; write the name of a file beside"
        ):
            open_model(folder)
    write("model-00002-of-00001.safetensors")
    with pytest.raises(InputError, match=r"model-00002-of-00001\.safetensors, which is not there: copy or save it"):
        open_model(folder)
    write(3)
    with pytest.raises(InputError, match="has no weight_map from weights to files"):
        open_model(folder)


def spoilt(folder: Path, kind: str) -> None:
    """Something that people do to a folder by mistake."""
    config = folder / "config.json"
    written = json.loads(config.read_text())
    texts = {
        "cut": '{\n "model_type": "bert",\n',
        "list": "[1, 2]",
        "unknown": json.dumps(written | {"model_type": "brt"}),
        "wider": json.dumps(written | {"vocab_size": written["vocab_size"] + 3}),
    }
    if kind in texts:
        config.write_text(texts[kind])
    elif kind == "tokenizer":
        (folder / "tokenizer.json").write_text('{"a": 1,\n')
    else:
        weights = load_file(folder / "model.safetensors")
        config.write_text(json.dumps(written | {"vocab_size": 9}))
        for name in [name for name, value in weights.items() if value.shape[:1] == (written["vocab_size"],)]:
            weights[name] = weights[name][:9].clone()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", "spoilt/config.json:3: not JSON (expecting property name"),
        ("list", "spoilt/config.json is JSON, but no {…}"),
        ("unknown", "config.json says model_type 'brt', which the installed transformers does not know; did you mean"),
        ("wider", "spoilt: config.json and the weights do not belong together: "),
        ("tokenizer", "spoilt/tokenizer.json:2: not JSON"),
        ("fewer words", "is not in the model's vocabulary, 0 … 8: its tokenizer belongs to another model"),
    ],
)
def test_a_spoilt_folder_is_one_line_that_names_the_file(clearhead, models, kind, message):
    shutil.copytree(models / "bert", "spoilt")
    spoilt(Path("spoilt"), kind)
    status, output, errors = clearhead("inspect", "spoilt", "--text", TEXT)
    assert (status, output, errors.count("\n")) == (2, "", 1), errors
    assert message in errors


def test_a_file_is_read_with_its_paragraphs(clearhead, models):
    Path("text.txt").write_text("\ufeffthe cat\n\nsat on the mat\n", encoding="utf-8")
    status, output, errors = clearhead("inspect", "models/gpt2", "--file", "text.txt", "--json")
    assert (status, errors) == (0, "")
    assert json.loads(output)["text"] == "the cat\n\nsat on the mat"
    for content, message in ((b" \n\n", "text.txt: there is no text in it"), (b"a\nb\xff", "text.txt:2: not UTF-8")):
        Path("text.txt").write_bytes(content)
        status, output, errors = clearhead("inspect", "models/gpt2", "--file", "text.txt")
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert message in errors


def finding(rule: str, head: int, value: float, threshold: float, severity: str = "alarm") -> Finding:
    return Finding(rule, "layers.0", head, value, threshold, None, f"layers.0 head {head}: {rule}", severity)


def test_the_worst_of_every_rule_comes_first():
    found = [
        finding("attention sink", 0, 0.9, 0.3, "note"),
        finding("entropy collapse", 1, 0.019, 0.02),
        finding("entropy collapse", 2, 0.001, 0.02),
        finding("logit explosion", 3, 110.0, 100.0),
        finding("logit explosion", 4, 1e4, 100.0),
        finding("logit explosion", 5, 105.0, 100.0),
        finding("not finite", 6, 3.0, 0.0),
    ]
    assert [each.head for each in ranked(found)] == [6, 4, 2, 3, 1, 5, 0]
    assert ranked([]) == []


def test_long_maps_are_drawn_in_blocks_by_position(models, tmp_path, monkeypatch):
    """Of 300 tokens: blocks, numbers in place of tokens, logarithmic colours, and marginals of a single head."""
    from clearhead.inspect import pictures

    drawn = {}
    for name in ("grid", "heatmap"):
        plain = getattr(pictures, name)
        monkeypatch.setattr(pictures, name, lambda *a, _=plain, _n=name, **k: drawn.setdefault(_n, _(*a, **k)))
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 512}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "long")
    tokens = torch.randint(30, (300,)).tolist()
    inspect(tmp_path / "long", tokens=tokens, heads=["transformer.h.0:1"], out=tmp_path / "out")
    for name, cells in (("grid", 128), ("heatmap", 256)):
        axes = drawn[name].axes[0]
        assert max(axes.images[0].get_array().shape) <= cells
        assert type(axes.images[0].norm).__name__ == "LogNorm"
        assert [text.get_text() for text in axes.get_yticklabels()][:1] == ["0"]
    assert len(drawn["heatmap"].axes[0].child_axes) == 2
    assert drawn["heatmap"].axes[0].get_title() == ""


def test_lines_are_as_long_as_they_look(models):
    lines = report(inspect(models / "gpt2", "日本 the cat sat"), 76)
    assert any("1" in line and "->" in line and line.endswith(":0") for line in lines)  # a pair and LAYER:HEAD
    assert all(cell_len(line) <= 76 or " " not in line.strip() for line in lines)


def test_code_that_a_folder_brings_along_is_not_run(models, tmp_path):
    folder = tmp_path / "foreign"
    shutil.copytree(models / "bert", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["Own"],
        "auto_map": {"AutoConfig": "own.Own", "AutoModel": "own.Own"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    with pytest.raises(InputError, match="foreign cannot be loaded"):
        open_model(folder)
    assert not (tmp_path / "harm").exists()
