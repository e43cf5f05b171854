"""The public surface: what `clearhead` offers, what importing it costs, and that everything in it says what it is."""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import FunctionType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import clearhead as ch
from clearhead import patterns

ROOT = Path(__file__).parent.parent
PACKAGES = ("bench", "data", "kernels", "maps", "nn", "observe", "patterns", "picture", "train", "view")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A new interpreter that finds the package where this one does."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_the_front_door_is_small_and_sorted():
    assert len(ch.__all__) <= 32
    assert ch.__all__ == ["__version__", *sorted(set(ch.__all__) - {"__version__"})]


@pytest.mark.parametrize("name", ch.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ch, name) is not None
    assert name in dir(ch)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_offers_what_it_names(package):
    module = importlib.import_module(f"clearhead.{package}")
    for name in module.__all__:
        assert hasattr(module, name), f"clearhead.{package}.{name}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'casual'"):
        _ = ch.casual


@pytest.mark.parametrize("package", ["", ".picture", ".train"])
def test_what_type_checkers_see_is_what_is_resolved(package):
    """A lazy table and its TYPE_CHECKING block name the same things in the same places."""
    module = importlib.import_module(f"clearhead{package}")
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)
    home = {name: where if "." in where else f"clearhead{package}.{where}" for name, where in module._HOME.items()}
    rooms = dict.fromkeys(set(module.__all__) - set(home) - {"__version__"}, "clearhead")
    assert seen == home | rooms
    assert set(module.__all__) - {"__version__"} == set(seen)


def test_importing_costs_next_to_nothing():
    done = run("-c", "import sys, clearhead; dir(clearhead); print(*sorted(sys.modules))")
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert done.returncode == 0, done.stderr
    assert "clearhead" in loaded
    assert not loaded & {"torch", "numpy", "matplotlib", "lightning", "pydantic", "yaml", "typer"}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments):
    program = f"""
import sys
from clearhead.cli import main
try:
    main({arguments!r})
finally:
    print(*(name for name in ("torch", "numpy", "lightning", "matplotlib") if name in sys.modules), file=sys.stderr)
"""
    done = run("-c", program)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout or ch.__version__ in done.stdout
    assert done.stderr.strip() == ""


def documented():
    """Every public class and function of the rooms, with the public methods that its classes define."""
    for package in PACKAGES:
        module = importlib.import_module(f"clearhead.{package}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield f"{package}.{name}", thing
            if inspect.isclass(thing):
                for method, function in vars(thing).items():
                    if not method.startswith("_") and isinstance(function, FunctionType | classmethod):
                        yield f"{package}.{name}.{method}", getattr(thing, method)


INHERITED = {"forward", "allows", "cover", "extra_repr", "reset_parameters", "state_dict", "load_state_dict"}
"""Methods whose meaning is that of the interface: torch's, or the one that their base class explains."""


@pytest.mark.parametrize(
    ("name", "thing"), list(documented()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_everything_public_says_what_it_is(name, thing):
    if name.split(".")[-1] in INHERITED:
        return
    words = inspect.getdoc(thing) or ""
    assert words, f"clearhead.{name} has no docstring"
    assert not words.startswith(f"{name.split('.')[-1]}("), f"clearhead.{name} has only the signature that Python wrote"


def shapes():
    number = st.integers(0, 9)
    leaves = st.one_of(
        st.just(ch.everything()),
        st.just(ch.causal()),
        st.builds(ch.window, number),
        st.builds(ch.window, number, number),
        st.builds(ch.chunks, st.integers(1, 9)),
        st.builds(ch.first, st.integers(1, 9)),
    )
    pairs = st.sampled_from([lambda a, b: a & b, lambda a, b: a | b])
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.builds(lambda make, a, b: make(a, b), pairs, inner, inner), st.builds(lambda a: ~a, inner)
        ),
        max_leaves=6,
    )


@given(shapes())
def test_a_pattern_can_be_pasted_back(pattern):
    assert eval(repr(pattern), {name: getattr(ch, name) for name in ch.__all__}) == pattern
    assert patterns.parse(repr(pattern)) == pattern
    assert hash(patterns.parse(repr(pattern))) == hash(pattern)


def test_a_mechanism_can_be_pasted_back():
    made = ch.Softmax(ch.causal() & ch.window(8), scale=0.5, softcap=30.0)
    again = eval(repr(made), {name: getattr(ch, name) for name in ch.__all__})
    assert repr(again) == repr(made)
    assert again.pattern == made.pattern
