import pytest
import yaml

from clearhead.errors import ConfigError
from clearhead.train import Config, read_config
from clearhead.train.config import Duration
from clearhead.train.settings import from_yaml, paths, to_yaml


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
        ("g2p", "monitor.every=0", "monitor.every: should be greater than or equal to 1, not 0"),
        ("g2p", "monitor.remedies=[qk-clop]", "should be 'qk-clip', 'lower-learning-rate' or 'stop', not 'qk-clop'"),
        ("g2p", "zzz=5", "the configuration has task, seed, score, data, model, train, monitor, decode"),
        ("g2p", "model.layers", "--set model.layers: write key=value, such as model.layers=4"),
        ("g2p", "model.layers=true", "model.layers: should be a valid integer, not True"),
        ("g2p", "model.layers=0", "model.layers: should be greater than or equal to 1, not 0"),
        ("g2p", "model.dropout=1.5", "model.dropout: should be less than 1, not 1.5"),
        ("g2p", "train.learning_rate=.nan", "train.learning_rate: should be"),
        ("g2p", "model.positions=rotry", "should be 'sinusoidal', 'learned' or 'rotary', not 'rotry'"),
        ("g2p", "train.duration=5 min", "write a duration as '5 minutes', '20 epochs' or '3000 steps', not '5 min'"),
        ("g2p", "train.duration=0 steps", "train.duration.amount: should be greater than 0"),
        ("g2p", "model.num_heads=5", "model: num_heads (5) must divide embed_dim (128)"),
        ("g2p", "model=3", "--set model=3: model: should be a valid dictionary, not 3"),
        ("g2p", "model.layers=[", "the value is not YAML"),
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
        ("task: g2p\nmodel:\n  layers: two\n", "x.yaml:3: model.layers: should be a valid integer, not 'two'"),
        ("task: g2p\nmodle:\n  layers: 2\n", "x.yaml:2: unknown key 'modle'; did you mean 'model'?"),
        ("train:\n  seed: 3\n", "x.yaml:2: unknown key 'train.seed'; did you mean 'seed'?"),
        ("task: [g2p\nmodel: 3\n", "x.yaml:2: not YAML: "),
        ("- a\n", "x.yaml: sections are needed, such as 'model:', and not list"),
        ("task: g2pp\n", "unknown task 'g2pp'; did you mean 'g2p'?"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_line(text, message):
    with pytest.raises(ConfigError) as caught:
        from_yaml(text, "x.yaml")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("written", "said"), [("1 minutes", "1 minute"), ("5 minute", "5 minutes"), ("1 epoch", "1 epoch")]
)
def test_a_duration_is_said_as_people_say_it(written, said):
    duration = Duration.model_validate(Duration.parse(written))
    assert str(duration) == said
    assert Duration.model_validate(Duration.parse(str(duration))) == duration
