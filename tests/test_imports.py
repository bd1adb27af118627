"""Imports run one way, and light things stay light."""

import ast
import functools
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ndvit

ROOT = Path(ndvit.__file__).parent
# Each line of rooms.txt is a floor, a room and its contents. A room may import rooms of lower floors, and itself.
LINES = (Path(__file__).parents[1] / "docs/rooms.txt").read_text(encoding="utf-8").splitlines()
FLOOR = {line.split()[1]: int(line.split()[0]) for line in LINES if line and not line.startswith("#")}
LIGHT = ["ndvit", "ndvit.config", "ndvit.config.recipe", "ndvit.cli"]
HEAVY = {"torch", "lightning", "sklearn", "scipy", "matplotlib", "torchvision", "aeon"}


def module_name(path):
    return ".".join(("ndvit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@functools.cache
def import_statements(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path):
    """The ndvit modules that a file imports anywhere, also inside functions and for type checkers only."""
    for node in import_statements(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ndvit")
        else:
            assert node.level == 0, f"{path}: imports are written in full"
            if node.module == "ndvit":
                yield from (f"ndvit.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            elif (node.module or "").startswith("ndvit."):
                yield node.module


def files_imported(path):
    """The files behind the imports: `from package import module` means the module."""
    names = set(imported(path))
    for node in import_statements(path):
        if isinstance(node, ast.ImportFrom) and node.module in names:
            modules = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            names |= modules
            if len(modules) == len(node.names):
                names.discard(node.module)
    return names & FILES.keys()


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def test_every_room_has_a_floor():
    rooms = {name.split(".")[1] for name in FILES if name != "ndvit"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("name", [name for name in FILES if name != "ndvit"])
def test_imports_run_one_way(name):
    room = name.split(".")[1]
    for other in imported(FILES[name]):
        below = other.split(".")[1]
        assert below == room or FLOOR[below] < FLOOR[room], f"{name} imports {other}"


def test_no_file_imports_another_in_a_circle():
    graph = {name: files_imported(path) - {name, "ndvit"} for name, path in FILES.items()}  # "ndvit" imports nothing
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f"imports run in a circle among {', '.join(graph)}"


def test_the_network_knows_the_config_only():
    for name, path in FILES.items():
        if name.startswith("ndvit.network"):
            assert {other.split(".")[1] for other in imported(path)} <= {"config", "network"}


def test_nothing_imports_the_command_line():
    outside = [path for name, path in FILES.items() if not name.startswith("ndvit.cli")]
    assert not [path for path in outside if any(other.startswith("ndvit.cli") for other in imported(path))]


def test_the_walk_sees_what_it_must():
    assert "ndvit.training.settings" in imported(FILES["ndvit.cli.app"])  # inside a function
    assert "ndvit.config" in imported(FILES["ndvit.network.vit"])
    assert "ndvit.config.recipe" in imported(FILES["ndvit.tasks.base"])  # for type checkers


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_nothing_heavy(name):
    code = f"import sys, {name}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert name in loaded
    assert not HEAVY & set(loaded)


def test_networks_need_no_trainer_and_no_data():
    code = "import sys, ndvit; ndvit.create_model('vit_pico', input_size=16); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert not {"lightning", "sklearn", "matplotlib", "PIL", "ndvit.data", "ndvit.training"} & set(loaded)


@pytest.mark.parametrize("name", ndvit.__all__)
def test_public_names_resolve_and_are_documented(name):
    thing = getattr(ndvit, name)
    assert thing.__name__ == name
    assert thing.__doc__
    assert thing.__module__.startswith("ndvit.")
    home = importlib.import_module(ndvit._HOMES[name])
    assert getattr(home, name) is thing


def test_public_names_are_complete():
    assert set(ndvit.__all__) == set(ndvit._HOMES) <= set(dir(ndvit))
    with pytest.raises(AttributeError, match="module 'ndvit' has no attribute 'nonsense'"):
        _ = ndvit.nonsense
