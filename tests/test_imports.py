"""Imports run one way, and light things stay light."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import ndvit

ROOT = Path(ndvit.__file__).parent
# a room may import rooms of a lower floor, and its own; a new room gets its floor here
FLOORS = [
    {"_torchvision"},
    {"config", "files"},
    {"network", "data"},
    {"weights"},
    {"inference", "evaluation"},
    {"training"},
    {"exporting"},
    {"estimator"},
    {"cli"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LIGHT = ["ndvit", "ndvit.config", "ndvit.config.recipe", "ndvit.cli.commands"]
HEAVY = {"torch", "lightning", "sklearn", "scipy", "matplotlib", "torchvision", "aeon"}


def module_name(path):
    return ".".join(("ndvit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported(path):
    """The ndvit modules that a file imports anywhere, also inside functions; what is for type checkers only is not."""
    tree = ast.parse(path.read_text())
    ignored = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ndvit")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            if node.module == "ndvit":
                yield from (f"ndvit.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            elif (node.module or "").startswith("ndvit."):
                yield node.module


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


def test_the_network_knows_the_config_only():
    for name, path in FILES.items():
        if name.startswith("ndvit.network"):
            assert {other.split(".")[1] for other in imported(path)} <= {"config", "network"}


def test_nothing_imports_the_command_line():
    assert not [name for name, path in FILES.items() if "ndvit.cli.commands" in imported(path)]


def test_the_walk_sees_what_it_must():
    assert "ndvit.training.run" in imported(FILES["ndvit.cli.commands"])  # inside a function
    assert "ndvit.config" in imported(FILES["ndvit.network.vit"])
    assert "ndvit.inference.answers" not in imported(FILES["ndvit"])  # for type checkers


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
