"""The documentation is true: its examples run and print what they say, its tables are those of the code.

Blocks of a page run from top to bottom, in one namespace and one folder, which holds a small trained run at runs/g2p:

- `python` runs; a `text` block right behind it is what it prints, where `...` stands for anything.
- `console` lines that begin with `$` run: `clearhead` on the tiny task, in seconds; `make` targets must be there.
- `yaml` is a configuration, which must be valid; with title="FILE" it is also written there.
- `math` is an equation, as is $…$ in a line: the hook of the pages must understand it.
- a block below `<!-- not run: reason -->` is not run. How many there are is written down here.
- of a `text` block below `<!-- figures vary … -->`, numbers and words in quotes need not be the same.
"""

import doctest
import importlib.util
import inspect
import json
import logging
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass, fields
from io import BytesIO, TextIOWrapper
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from types import ModuleType

import pytest
import torch
import typer

import clearhead as ch
import test_house
from clearhead.cli import app, main
from clearhead.kernels import Statistics, costs
from clearhead.train import config, settings, task
from clearhead.train.clock import Clock
from tiny_task import SMALL

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOT_RUN = {
    "README.md": 3,
    "CONTRIBUTING.md": 1,
    "docs/start.md": 2,
    "docs/observe.md": 4,
    "docs/training.md": 2,
    "docs/benchmarks.md": 2,
}
G2P = dict(config.TASKS["g2p"])
STEPS = config.Duration(amount=12, unit="steps")

_FENCE = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n)?(?P<varies><!-- figures vary [^>]+ -->\n)?"
    r"^```(?P<kind>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FIGURE = re.compile(r"'\w+'|\d+(\.\d+)?(e[+-]?\d+)?")
_PICTURE_OR_LINK = re.compile(r"\]\(([^)#\s]+)|<img src=\"([^\"]+)\"")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its lines, where they begin, whether it is run, and whether its figures vary."""

    kind: str
    body: str
    title: str | None
    where: str
    runs: bool
    varies: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        where = f"{page.relative_to(ROOT)}:{text[: match.start('body')].count(chr(10)) + 1}"
        runs, varies = match["skip"] is None, match["varies"] is not None
        found.append(Block(match["kind"], match["body"], match["title"], where, runs, varies))
    assert text.count("\n```") == 2 * len(found), f"{page}: a block has no language, or is indented"
    return found


def of_docs(name: str) -> ModuleType:
    """A Python file of the docs."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


equations, make_pictures = of_docs("equations"), of_docs("make_pictures")


@pytest.fixture(scope="module", autouse=True)
def rates_as_built_in(tmp_path_factory):
    """What `clearhead calibrate` once measured on this machine is not what the pages print."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "rates_file", lambda: tmp_path_factory.getbasetemp() / "rates.json")
        costs.measured.cache_clear()
        yield
    costs.measured.cache_clear()


@pytest.fixture(autouse=True)
def log_levels():
    """What a page sets, or a library that it uses, ends with it."""
    loggers = [logging.getLogger(name) for name in (None, "clearhead", "clearhead.observe")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def tiny_g2p():
    """For this module the task g2p is the tiny one, and five minutes are twelve steps."""
    small: dict = {"score": "pronunciation", "data": dict(G2P["data"])}
    for setting in SMALL:
        (section, key), value = setting.partition("=")[0].split("."), setting.partition("=")[2]
        small.setdefault(section, {})[key] = int(value) if value.isdigit() else value
    small["model"]["layers"] = 2
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.TASKS, "g2p", small)
        patch.setattr(task, "Clock", lambda duration, steps_per_epoch: Clock(STEPS, steps_per_epoch))
        yield
    torch.set_num_threads(threads)


def run_command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


@pytest.fixture(scope="module")
def trained(tiny_g2p, tmp_path_factory):
    """A folder with runs/g2p in it."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_command("train", "g2p", "--minutes", "5") == 0
    return folder


@pytest.fixture
def beside_run(trained, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Page:
    """Runs the blocks of one page in their order."""

    def __init__(self, monkeypatch, capsys) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.names: dict = {"__name__": "__main__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        if block.kind != "math":
            {"python": self.python, "text": self.text, "console": self.console, "yaml": self.yaml}[block.kind](block)

    def python(self, block: Block) -> None:
        line = int(block.where.split(":")[1])
        exec(compile("\n" * (line - 1) + block.body, block.where, "exec"), self.names)
        self.printed = self.capsys.readouterr().out

    def text(self, block: Block) -> None:
        self.compare(block.body, block.where, block.varies)

    def yaml(self, block: Block) -> None:
        settings.from_yaml(block.body, block.where)
        if block.title:
            Path(block.title).write_text(block.body, encoding="utf-8")

    def console(self, block: Block) -> None:
        for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self.command(shlex.split(command, comments=True), block.where)
            if expected.strip():
                self.compare(expected, block.where)

    def command(self, words: list[str], where: str) -> None:
        if "|" in words:
            bar = words.index("|")
            assert words[0] == "echo", f"{where}: only echo is understood before |"
            self.monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(" ".join(words[1:bar]).encode())))
            words = words[bar + 1 :]
        program, *arguments = words
        if program == "make":
            target = arguments[0]
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{where}: no {target}"
        else:
            assert program == "clearhead", f"{where}: {program} cannot be run; say so above the block"
            prepare(arguments)
            assert run_command(*arguments) == 0, f"{where}: {self.capsys.readouterr().err}"
            self.printed = self.capsys.readouterr().out

    def compare(self, expected: str, where: str, varies: bool = False) -> None:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        said, printed = (_FIGURE.sub("#", x) if varies else x for x in (expected, self.printed))
        assert doctest.OutputChecker().check_output(said, printed, flags), (
            f"{where} says\n{expected}\nbut what is printed is\n{self.printed}"
        )


def prepare(arguments: list[str]) -> None:
    """Bring about the state that a page speaks of: no run to be trained, an interrupted one to be resumed."""
    if arguments[0] != "train" or "--find-learning-rate" in arguments:  # the latter leaves runs as they are
        return
    named = dict(pairwise(arguments)).get("--name", "g2p")
    run = Path("runs", named)
    if "--resume" in arguments:
        (run / "model.safetensors").unlink()
        max((run / "checkpoints").glob("step-*")).unlink()
    elif "--overwrite" not in arguments and run.exists():
        shutil.rmtree(run)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")  # of Lightning, about torch
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_shows_is_so(page, beside_run, monkeypatch, capsys):
    runner = Page(monkeypatch, capsys)
    for block in blocks(page):
        if block.runs:
            runner.run(block)
    if page in make_pictures.PAGES:
        drawn = make_pictures.shown(page)
        assert drawn
        assert all(Path(name).stat().st_size > 3_000 for name in drawn)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_equations_of_a_page_are_understood(page):
    for equation in equations.equations(page.read_text(encoding="utf-8")):
        ET.fromstring(equations.mathml(equation).replace("\u00a0", " "))


@pytest.mark.parametrize(
    ("latex", "mathml"),
    [
        ("a_{ij}^2", "<msubsup><mi>a</mi><mrow><mi>i</mi><mi>j</mi></mrow><mn>2</mn></msubsup>"),
        ("\\sum_j v_j", "<mrow><munder><mo>∑</mo><mi>j</mi></munder><msub><mi>v</mi><mi>j</mi></msub></mrow>"),
        ("\\frac{1}{\\sqrt d}", "<mfrac><mn>1</mn><msqrt><mi>d</mi></msqrt></mfrac>"),
        (
            "\\mathrm{softmax}(S)",
            '<mrow><mi>softmax</mi><mo stretchy="false">(</mo><mi>S</mi><mo stretchy="false">)</mo></mrow>',
        ),
        ("x < 1", "<mrow><mi>x</mi><mo>&#60;</mo><mn>1</mn></mrow>"),
    ],
)
def test_equations_become_mathml(latex, mathml):
    assert equations.mathml(latex) == f"<math>{mathml}</math>"


@pytest.mark.parametrize("latex", ["\\foo", "{a", "a}", "x_", "\\frac{1}", "\\left( a", "\\begin{cases} a", "a & b"])
def test_an_equation_that_is_not_understood_is_refused(latex):
    with pytest.raises(ValueError, match="in the equation"):
        equations.mathml(latex)


def test_code_and_money_are_no_equations():
    page = "`$a$`, $b$ and\n\n```console\n$ make docs\n$ make test\n```\n\n5 $ or 6 $ each\n"
    assert equations.equations(page) == ["b"]
    assert equations.on_page_markdown(page) == page.replace(
        "$b$", '<span class="equation"><math><mi>b</mi></math></span>'
    )


def test_what_cannot_be_run_is_counted():
    skipped = {str(page.relative_to(ROOT)): sum(not block.runs for block in blocks(page)) for page in PAGES}
    assert {name: count for name, count in skipped.items() if count} == NOT_RUN


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    for link in _PICTURE_OR_LINK.findall(page.read_text(encoding="utf-8")):
        name = link[0] or link[1]
        if "://" not in name:
            assert (page.parent / name).exists(), f"{page}: {name}"


def test_the_first_example_runs_on_the_first_screen():
    first = next(block for block in blocks(ROOT / "README.md") if block.kind == "python")
    assert "SelfAttention(embed_dim=128)" in first.body
    assert int(first.where.split(":")[1]) + first.body.count("\n") <= 30


def test_pictures_can_be_drawn_again(tmp_path):
    made = {path.name for path in make_pictures.make(tmp_path)}
    of_pages = {name for page in make_pictures.PAGES for name in make_pictures.shown(page)}
    shown = {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert shown == made | of_pages | {f"{name}.png" for name in make_pictures.NEEDED}
    assert all((tmp_path / name).stat().st_size > 10_000 for name in made)
    assert all((ROOT / "docs" / "pictures" / name).stat().st_size < 200_000 for name in shown)


def rows(page: str, header: str) -> list[list[str]]:
    """The rows of the table whose header begins so."""
    _, _, rest = (ROOT / page).read_text(encoding="utf-8").partition(f"\n| {header}")
    assert rest, f"{page} has no table {header}"
    lines = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names(cells: list[str]) -> list[str]:
    return [name for cell in cells for name in re.findall(r"`(\w+)", cell)]


def test_the_design_lists_the_statistics_that_there_are():
    listed = names([row[0] for row in rows("docs/design.md", "statistic")])
    assert sorted(listed) == sorted(field.name for field in fields(Statistics))


def test_the_design_lists_the_patterns_that_there_are():
    shapes = {name for name in ch.__all__ if ch._HOME.get(name) == "clearhead.patterns"} - {"Pattern"}
    for page in ("docs/design.md", "docs/patterns.md"):
        assert set(names([row[0] for row in rows(page, "pattern")])) == shapes


def test_the_design_lists_the_kernels_in_their_order():
    from clearhead.kernels.choose import KERNELS

    assert names([row[0] for row in rows("docs/design.md", "kernel")]) == [name for name, _ in KERNELS]


def test_the_design_draws_the_house_as_it_is():
    listed = {name.rstrip("/").removesuffix(".py"): int(level) for level, name in _levels()}
    rooms = {test_house.room(module) for module in test_house.MODULES} - {""}
    assert listed == {room: test_house.LEVELS[room] for room in rooms}


def _levels() -> list[tuple[str, str]]:
    return [(row[0], name) for row in rows("docs/design.md", "level") for name in re.findall(r"`([\w/.]+)`", row[1])]


def test_every_key_of_the_configuration_is_documented_with_its_default():
    for path in settings.paths():
        value = attrgetter(path)(config.Config())
        shown = "none" if value is None else str(value).replace("(", "[").replace(")", "]")
        shown = {"True": "true", "False": "false"}.get(shown, shown)
        assert [f"`{path}`", f"`{shown}`"] in [row[:2] for row in rows("docs/training.md", "key")], f"{path}: {shown}"


def test_what_the_task_sets_differently_is_documented():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for section, keys in G2P.items():
        paths = (
            {f"{section}.{key}": value for key, value in keys.items()} if isinstance(keys, dict) else {section: keys}
        )
        for path, value in paths.items():
            shown = value["kind"] if isinstance(value, dict) else "true" if value is True else value
            assert f"`{path}` to `{shown}`" in text


def test_every_option_of_the_program_is_documented():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = dict(typer.main.get_command(app).commands)
    for group in [name for name, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    assert "bench watch" in commands
    for name, command in commands.items():
        assert f"clearhead {name}" in text
        for option in (option for parameter in command.params for option in parameter.opts):
            assert not option.startswith("--") or f"`{option}" in text or f" {option}" in text, f"{name} {option}"


def test_observe_lists_the_statistics_that_there_are():
    listed = names([row[0] for row in rows("docs/observe.md", "statistic")])
    assert sorted(listed) == sorted(field.name for field in fields(Statistics))


def test_observe_lists_the_rules_with_their_thresholds_and_papers():
    listed = rows("docs/observe.md", "rule")
    assert [row[0].strip("`") for row in listed] == [rule.name for rule in ch.observe.RULES]
    for rule, (_, _, threshold, severity, papers) in zip(ch.observe.RULES, listed, strict=True):
        assert (float(threshold), severity) == (rule.threshold, rule.severity)
        cited = re.findall(r"\[(\w+(?: \w+)? \d{4})\]", papers)
        assert cited
        assert all(paper in rule.paper for paper in cited)


def test_observe_lists_the_remedies_with_their_papers():
    homes = ("clearhead.observe.health.remedies", "clearhead.observe.health.reparam")
    remedies = [name for name in ch.observe.__all__ if getattr(getattr(ch.observe, name), "__module__", "") in homes]
    listed = rows("docs/observe.md", "remedy")
    assert sorted(names([row[0] for row in listed])) == sorted(remedies)
    for cell, _, papers in listed:
        remedy = getattr(ch.observe, names([cell])[0])
        sources = getattr(remedy, "paper", remedy.__doc__)
        assert all(paper in sources for paper in re.findall(r"\[(\w+(?: \w+)? \d{4})\]", papers)), cell


def test_observe_lists_the_laws_of_verify():
    from clearhead.observe.verifying.verify import LAWS

    assert {row[0].strip("`"): row[1] for row in rows("docs/observe.md", "law")} == LAWS


def test_observe_lists_the_options_of_a_monitor():
    parameters = inspect.signature(ch.observe.AttentionMonitor).parameters
    listed = names([row[0] for row in rows("docs/observe.md", "option")])
    assert set(listed) == set(parameters) - {"model", "compiled"}
    assert (parameters["every"].default, parameters["rows"].default, parameters["samples"].default) == (20, 16, 16)


def test_observe_lists_what_the_json_of_an_inspection_holds(beside_run, capsys):
    assert run_command("inspect", "runs/g2p", "--text", "attention", "--out", "looked") == 0
    record = json.loads(Path("looked/statistics.json").read_text(encoding="utf-8"))
    listed = {names([key])[0]: names([cell]) for key, cell in rows("docs/observe.md", "key | is")}
    assert set(listed) == set(record)
    assert listed["findings"] == [field.name for field in fields(ch.observe.Finding)]
    assert record["pairs"]
    assert all(set(pair) == set(listed["pairs"]) for pair in record["pairs"])
    assert set(record["model"]) == set(listed["model"])
    assert set(record["tokens"]) == set(listed["tokens"])
    assert set(listed["heads"]) <= set(record["heads"][0])
    capsys.readouterr()
    assert run_command("inspect", "runs/g2p", "--text", "attention", "--json") == 0
    del record["made_by"]
    assert json.loads(capsys.readouterr().out) == record | {"files": []}


def test_observe_lists_reasons_that_are_given():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/clearhead/observe").rglob("*.py"))
    for reason, _ in rows("docs/observe.md", "reason"):
        assert reason.strip("`") in source, reason


@pytest.mark.parametrize("page", ["docs/observe.md", "docs/hugging-face.md"])
def test_architectures_are_listed_as_the_sweep_holds_them(page):
    """Each row with names says how many there are, and the names are those of a list of the sweep."""
    import architectures
    import test_observe_sweep as sweep

    of = sweep.level if page == "docs/observe.md" else sweep.attends
    lists, others = {}, []
    for kind in sweep.RUN:
        lists.setdefault(of(kind), []).append(kind)
    if page == "docs/hugging-face.md":
        lists["the model itself"] = architectures.OWN  # but for those that have no attention
    for what, number, which in rows(page, "architectures of transformers"):
        if what == "not run":
            counts = [len(kinds) for kinds in architectures.NOT_RUN.values()]
            assert int(number) == sum(counts)
            assert sorted(map(int, re.findall(r"\((\d+)\)", which))) == sorted(counts)
        elif which == "all others":
            others.append(int(number))
        else:
            kinds = re.findall(r"`([^`]+)`", which)
            assert sorted(kinds) in [sorted(names) for names in lists.values()], what
            assert int(number) == len(kinds), what
    assert others == [max(map(len, lists.values()))]
    assert len(rows(page, "architectures of transformers")) == len(lists) + (page == "docs/observe.md")


@pytest.mark.parametrize("room", ["nn", "observe", "picture"])
def test_the_reference_lists_every_public_name(room):
    listed = re.findall(rf"^::: clearhead\.{room}\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(getattr(ch, room).__all__)
