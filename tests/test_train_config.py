import datetime
import math
import re

import pytest
import yaml

from clearhead.errors import ConfigError
from clearhead.nn import Seq2Seq
from clearhead.train import Config, read_config, sizes
from clearhead.train.config import Duration
from clearhead.train.settings import check, from_yaml, paths, to_yaml
from clearhead.train.sizes import weights
from clearhead.train.trees import nest


def test_layers_are_of_both_sides_unless_one_is_set(tmp_path):
    def sides(*settings, file="g2p"):
        model = read_config(file, settings).model
        return model.encoder_layers or model.layers, model.decoder_layers or model.layers

    assert sides() == (2, 1)
    assert sides("model.layers=4") == (4, 4)
    assert sides("model.layers=4", "model.decoder_layers=2") == (4, 2)
    assert sides("model.encoder_layers=3") == (3, 1)
    path = tmp_path / "deep.yaml"
    path.write_text("task: g2p\nmodel:\n  layers: 5\n")
    assert sides(file=str(path)) == (5, 5)
    path.write_text(to_yaml(read_config("g2p")))
    assert sides(file=str(path)) == (2, 1)


def test_settings_go_on_top_of_the_task():
    config = read_config("g2p", ["model.layers=4", "train.duration=3 epochs", "train.learning_rate=1e-3", "seed=7"])
    assert (config.model.layers, str(config.train.duration), config.train.learning_rate) == (4, "3 epochs", 1e-3)
    assert config.seed == 7
    assert config.model.embed_dim == Config().model.embed_dim


def test_a_file_is_read_back_as_it_was_written(tmp_path):
    config = read_config("g2p", ["model.encoder_layers=3", "train.duration=90 steps", "train.patience=2"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert read_config(str(path)) == config
    assert read_config(str(path), ["seed=1"]).seed == 1


def test_every_key_can_be_set():
    g2p = read_config("g2p")
    tree = yaml.safe_load(to_yaml(g2p))
    for path in paths():
        if path == "model.layers":  # it sets two others: see test_layers_are_of_both_sides_unless_one_is_set
            continue
        value = tree
        for key in path.split("."):
            value = value[key]
        setting = f"{path}={yaml.safe_dump(value, default_flow_style=True).strip()}"
        assert read_config("g2p", [setting]) == g2p, path


@pytest.mark.parametrize(
    ("task", "setting", "message"),
    [
        ("g2q", None, "unknown task 'g2q'; did you mean 'g2p'?"),
        ("g2p", "train.layers=3", "--set train.layers=3: unknown key 'train.layers'; did you mean 'model.layers'?"),
        ("g2p", "model.layer=3", "unknown key 'model.layer'; did you mean 'model.layers'?"),
        ("g2p", "model.seed=3", "unknown key 'model.seed'; did you mean 'seed'?"),
        ("g2p", "modl.layers=3", "--set modl.layers=3: unknown key 'modl'; did you mean 'model'?"),
        ("g2p", "train.minutes=5", "did you mean 'train.duration'?"),
        ("g2p", "decode.zzz=5", "unknown key 'decode.zzz'; decode has beam, length_penalty"),
        ("g2p", "monitor.every=0", "monitor.every: must be at least 1, not 0"),
        (
            "g2p",
            "monitor.remedies=[qk-clop]",
            "must be 'qk-clip', 'lower-learning-rate' or 'stop', not 'qk-clop'; did you mean 'qk-clip'?",
        ),
        ("g2p", "task=seq2seq", "--set task=seq2seq: the task is chosen first: `clearhead train seq2seq`"),
        ("g2p", "model.embed_dim=129", "model: num_heads (4) must divide embed_dim (129)"),
        ("g2p", "model={embed_dim: 9, num_heads: 3}", "model: embed_dim (9) must be even for sinusoidal positions"),
        (
            "g2p",
            "model={embed_dim: 9, num_heads: 3, positions: rotary}",
            "model: embed_dim / num_heads (3) must be even for rotary ones",
        ),
        (
            "g2p",
            "model.share_embeddings=true",
            "--set model.share_embeddings=true: model.share_embeddings: needs one vocabulary: set data.tokenizer.joint",
        ),
        ("g2p", "model.pattern=windw(3)", "model.pattern: pattern 'windw(3)': unknown shape 'windw'; did you mean"),
        ("g2p", "model.pattern=window(9999999999999999999)", "window: before is greater than 2**62"),
        ("g2p", "." * 99999 + "=1", "write key=value, such as model.layers=4"),
        ("g2p", f"model.{'x' * 300}=1", "unknown key 'model.xxx"),
        ("g2p", "data.train=\udcff.tsv", "not YAML: the character U+DCFF is not allowed"),
        ("\0.yaml", None, ".yaml: embedded null byte"),
        (f"{'x' * 300}.yaml", None, ".yaml: file name too long"),
        ("g2p", "zzz=5", "the configuration has task, seed, score, data, model, train, monitor, decode"),
        ("g2p", "model.layers", "--set model.layers: write key=value, such as model.layers=4"),
        ("g2p", "model.layers=true", "model.layers: must be a whole number, not true"),
        ("g2p", "model.layers=0", "model.layers: must be at least 1, not 0"),
        ("g2p", "model.dropout=1.5", "model.dropout: must be less than 1, not 1.5"),
        ("g2p", "train.learning_rate=.nan", "train.learning_rate: must be a number, not nan"),
        (
            "g2p",
            "model.positions=rotry",
            "must be 'sinusoidal', 'learned' or 'rotary', not 'rotry'; did you mean 'rotary'?",
        ),
        ("g2p", "train.duration=5 min", "write a duration as '5 minutes', '20 epochs' or '3000 steps', not '5 min'"),
        ("g2p", "train.duration=0 steps", "train.duration.amount: must be greater than 0"),
        ("g2p", "model.num_heads=5", "model: num_heads (5) must divide embed_dim (128)"),
        ("g2p", "model=3", "--set model=3: model: must be a section of keys, not 3"),
        ("g2p", "model.layers=[", "--set model.layers=[: not YAML: "),
        ("none.yaml", None, "none.yaml: no such file or directory"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_meant(task, setting, message):
    with pytest.raises(ConfigError) as caught:
        read_config(task, [setting] if setting else [])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: g2p\nmodel:\n  layers: two\n", "x.yaml:3: model.layers: must be a whole number, not 'two'"),
        ("task: g2p\nmodle:\n  layers: 2\n", "x.yaml:2: unknown key 'modle'; did you mean 'model'?"),
        ("train:\n  seed: 3\n", "x.yaml:2: unknown key 'train.seed'; did you mean 'seed'?"),
        ("task: [g2p\nmodel: 3\n", "x.yaml:2: not YAML: "),
        ("- a\n", "x.yaml: sections are needed, such as 'model:', and not list"),
        ("task: g2pp\n", "x.yaml:1: unknown task 'g2pp'; did you mean 'g2p'?"),
        ("task: [g2p]\n", "x.yaml:1: task: must be g2p or seq2seq, not ['g2p']"),
        ("model:\n  layers: 2\n  layers: 3\n", "x.yaml:3: not YAML: 'layers' is there twice: leave one of them out"),
        ("model:\n  2: 3\n", "x.yaml:2: not YAML: a key must be a name, such as 'model'"),
        ("model: &all\n  layers: *all\n", "x.yaml:2: not YAML: *all is within &all, and would hold itself"),
        ("seed: 1\nmodel: " + "[" * 5000, "x.yaml:2: not YAML: more than 16 levels"),
        ("seed: 1\nmodel: {a: \x07}\n", "x.yaml:2: not YAML: the character U+0007 is not allowed"),
        ("seed: 1\nmodel: !!int two\n", "x.yaml: not YAML: a value that its tag does not fit"),
        (
            "seed: 1\ndata: !!python/name:os.system\n",
            "x.yaml:2: not YAML: could not determine a constructor for the tag",
        ),
        ("seed: 2001-13-32\n", "x.yaml: not YAML: a value that its tag does not fit"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_line(text, message):
    with pytest.raises(ConfigError) as caught:
        from_yaml(text, "x.yaml")
    assert message in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    def message(name):
        with pytest.raises(ConfigError) as caught:
            read_config(str(tmp_path / name))
        return str(caught.value).removeprefix(f"{tmp_path}/")

    (tmp_path / "latin.yaml").write_bytes("seed: 1\n# für\n".encode("latin-1"))
    assert message("latin.yaml") == "latin.yaml:2: not UTF-8 (byte 0xFC); save the file as UTF-8"
    (tmp_path / "folder.yaml").mkdir()
    assert message("folder.yaml") == "folder.yaml: is a directory"
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    assert message("dangling.yaml") == "dangling.yaml: no such file or directory"
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    assert message("loop.yaml") == "loop.yaml: too many levels of symbolic links"
    (tmp_path / "long.yaml").write_text("#" * 2**20 + "\n")
    assert message("long.yaml") == "long.yaml: more than 1,048,576 bytes, which is no configuration"


def test_what_is_repeated_by_aliases_is_read_once():
    """Nine levels of nine aliases each are 9⁹ values, where they are written out."""
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(ConfigError, match=r"^x\.yaml:1: unknown key 'a0'"):
        from_yaml("\n".join(["a0: &a0 [1]", *levels]), "x.yaml")
    shared = "data:\n  source_tokenizer: &own {kind: characters}\n  target_tokenizer: *own\n"
    assert from_yaml(shared, "x.yaml").data.target_tokenizer.kind == "characters"


WRONG = [
    *(None, True, 0, -1, 10**30, -(10**30), 1.5, -0.5, 1e308, math.nan, math.inf, -math.inf),
    *("", "a", "x" * 5000, "1", "nan", "1e400", "9" * 5000, "\ud800", "\0", b"x", datetime.date(2020, 1, 1)),
    *([], [1], ["a"], [0.5, 0.5], ["a", "b", "c"], [None], [[1]], {}, {"a": 1}, {"kind": "bpe"}, {1: 2}, {1, 2}),
]


@pytest.mark.parametrize("path", [*paths(), "data", "model", "train", "monitor", "decode"])
def test_whatever_a_key_is_set_to_is_right_or_one_line_in_our_words(path):
    for value in WRONG:
        try:
            config = check(nest(path.split("."), value), (), "x.yaml", {path: 7})
        except ConfigError as error:
            said = str(error)
            assert re.fullmatch(r"x\.yaml:7: (unknown key '|(\S+): (?!cannot be that)).+", said), said
            assert path.partition(".")[0] in said
            assert not re.search(
                r"[Ii]nput|unable|parse|dictionary|instance|[Tt]uple|not (None|True|False)|Error", said
            ), said
            assert len(said) < 300
        else:  # which is then read back from a run's folder as it was
            assert from_yaml(to_yaml(config), "x.yaml") == config


ABSURD = {
    "model.layers": 10**9,
    "model.encoder_layers": 10**9,
    "model.decoder_layers": 10**9,
    "model.embed_dim": 4 * 10**12,
    "model.ff_dim": 10**15,
    "data.batch_tokens": 10**12,
    "data.tokenizer.size": 10**12,
    "decode.beam": 10**12,
    "train.devices": 10**6,
}


@pytest.mark.parametrize("path", ABSURD)
def test_what_no_machine_can_hold_is_refused_before_it_is_taken(path, tmp_path):
    match = rf"{path}: {ABSURD[path]:,} would need [\d,]+ [TE]B for .+ alone, and this machine has [\d,]+ GB: write a"
    with pytest.raises(ConfigError, match=rf"^--set {path}={ABSURD[path]}: {match}"):
        read_config("seq2seq", [f"{path}={ABSURD[path]}"])
    file = tmp_path / "x.yaml"
    file.write_text(f"# a\ntask: seq2seq\n{yaml.safe_dump(nest(path.split('.'), ABSURD[path]))}")
    with pytest.raises(ConfigError, match=rf"x\.yaml:\d: {match}"):
        read_config(str(file))


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setattr(sizes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sizes, "memory", lambda: 2**40)
    assert read_config("g2p", ["train.devices=2"]).train.devices == 2
    with pytest.raises(ConfigError, match=r"train\.devices: 3 GPUs are asked for, and this machine has 2: write a"):
        read_config("g2p", ["train.devices=3"])


def test_learned_positions_are_counted():
    settings = ["model.max_length=1000000000000000"]
    assert read_config("g2p", settings).model.max_length == 10**15  # sines hold no table
    with pytest.raises(ConfigError, match=r"model\.max_length: .* would need 1 EB for its weights alone"):
        read_config("g2p", [*settings, "model.positions=learned"])


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("model.layers=3", "model.decoder_layers=1", "model.ff_dim=100", "model.positions=rotary"),
        ("model.kv_heads=2", "model.positions=learned", "model.max_length=500"),
        ("data.tokenizer.joint=true", "model.share_embeddings=true"),
    ],
)
def test_the_weights_that_are_counted_are_those_of_the_network(settings):
    network = read_config("seq2seq", settings).model
    source = target = 300 if network.share_embeddings else 200
    module = Seq2Seq(
        source,
        target,
        encoder_layers=network.encoder_layers or network.layers,
        decoder_layers=network.decoder_layers or network.layers,
        **{key: getattr(network, key) for key in ("embed_dim", "num_heads", "ff_dim", "kv_heads", "positions")},
        **{key: getattr(network, key) for key in ("max_length", "share_embeddings")},
    )
    assert weights(network, source, target) == sum(w.numel() for w in module.parameters() if w.dim() == 2)


@pytest.mark.parametrize(
    ("written", "said"), [("1 minutes", "1 minute"), ("5 minute", "5 minutes"), ("1 epoch", "1 epoch")]
)
def test_a_duration_is_said_as_people_say_it(written, said):
    duration = Duration.model_validate(Duration.parse(written))
    assert str(duration) == said
    assert Duration.model_validate(Duration.parse(str(duration))) == duration
