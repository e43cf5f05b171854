"""The house: a file imports only from its own folder or from lower levels, and no file imports itself by a detour."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
HOUSE = SRC / "clearhead"
LEVELS = {
    "errors": 0,
    **dict.fromkeys(("patterns", "writing"), 1),
    "kernels": 2,
    "maps": 3,
    **dict.fromkeys(("nn", "picture", "data", "prune", "privacy", "robust"), 4),
    "observe": 5,
    "train": 6,
    **dict.fromkeys(("bench", "demo", "inspect"), 7),
    **dict.fromkeys(("serve", "view"), 8),
    **dict.fromkeys(("cli", "notebook"), 9),
}
STRANGERS = {"picture": {"nn"}, "observe": {"nn"}}
"""Rooms that never import others although these lie below or beside them."""
UP = {("clearhead.observe.calls", "clearhead.view")}
"""The one way up the house: `Seen.view()` opens a page when it is asked for."""
FILES = sorted(HOUSE.rglob("*.py"))


def name_of(path: Path) -> str:
    """clearhead.maps.base for src/clearhead/maps/base.py, clearhead.maps for its __init__.py."""
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in FILES}


def room(module: str) -> str:
    """The folder or file of the house that a module belongs to; "" for the front door, clearhead/__init__.py."""
    return [*module.split("."), ""][1]


def target(module: str, name: str) -> str:
    """What `from module import name` reads: a module of that name, or the one that holds it."""
    return f"{module}.{name}" if f"{module}.{name}" in MODULES else module


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Every import of our own modules in a file, (line, module): in functions, for types, and by importlib too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: write the import in full"
            found += [(node.lineno, target(node.module or "", alias.name)) for alias in node.names]
        elif isinstance(node, ast.Constant) and node.value in MODULES:  # a module's name is there to be imported
            found.append((node.lineno, str(node.value)))
    return tuple((line, module) for line, module in found if module.split(".")[0] == "clearhead")


@cache
def imports_at_once(path: Path) -> tuple[str, ...]:
    """The modules that a file imports while it is itself imported: not in functions, nor for types alone."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [target(node.module or "", alias.name) for alias in node.names]
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return tuple(name for name in found if name in MODULES)


def test_every_room_has_a_level():
    rooms = {room(module) for module in MODULES} - {""}
    assert rooms <= set(LEVELS), f"give {rooms - set(LEVELS)} a level, here and in docs/design.md"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"clearhead"}))
def test_a_file_imports_from_its_own_folder_or_from_lower_levels(module):
    own = room(module)
    for line, other in imports(MODULES[module]):
        there = room(other)
        if there in ("", own) or (module, other) in UP:
            continue
        where = f"{MODULES[module]}:{line}: {own} imports {there}"
        assert LEVELS[there] < LEVELS[own], f"{where}, which is not below it"
        assert there not in STRANGERS.get(own, ()), f"{where}, which it never may"


def test_only_the_front_door_and_the_program_use_the_front_door():
    """`import clearhead` inside the house would hide which room a file needs; the program reads the version there."""
    users = {module for module, path in MODULES.items() for _, other in imports(path) if other == "clearhead"}
    assert users <= {"clearhead.cli"}


def test_no_file_imports_itself_by_a_detour():
    """Between files: a package's __init__ gathers what its files define, and is a file like the others."""
    graph = {module: set(imports_at_once(path)) - {module} for module, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_a_private_name_stays_in_its_file():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clearhead"):
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{path}:{node.lineno}: {', '.join(private)} of {node.module}"


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if "from jaxtyping" in path.read_text()])
def test_shapes_that_are_written_down_are_checked(module, pytestconfig):
    checked = pytestconfig.getoption("--jaxtyping-packages").split(",")[:-1]
    assert any(f"{module}.".startswith(f"{part}.") for part in checked), "add it to pyproject.toml"


def test_nothing_is_called_utils():
    vague = {"util", "utils", "helper", "helpers", "misc", "common"}
    assert not [str(path) for path in HOUSE.rglob("*") if path.stem in vague]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    from clearhead.nn import maps\n", [(2, "clearhead.nn")]),
        ("import clearhead.maps.base\n", [(1, "clearhead.maps.base")]),
        ("from clearhead import nn\n", [(1, "clearhead.nn")]),
        ("import importlib\nimportlib.import_module('clearhead.nn')\n", [(2, "clearhead.nn")]),
    ],
)
def test_the_walk_finds_imports_wherever_they_hide(tmp_path, source, expected):
    path = tmp_path / "x.py"
    path.write_text(source)
    assert list(imports(path)) == expected
