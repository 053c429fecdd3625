"""The house: imports run one way, and the page that describes it names what is there."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; rooms of one floor do not know each other. What is not named here is the ground floor.
FLOORS = (
    ("ops",),
    ("linearized",),
    ("certificates",),
    ("losses", "regions"),
    ("reports",),
    ("", "plot"),  # the public names
    ("commands",),
    ("paper",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
GROUND = -1
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "llr_fast").rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path): path for path in MODULES}


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere, also inside functions and for type checkers."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level] if node.level else [])
            module = ".".join(part for part in (base, node.module) if part)
            submodules = {f"{module}.{alias.name}" for alias in node.names} & NAMES.keys()
            found |= submodules or {module}
    return found & NAMES.keys()


def room_of(module: str) -> str:
    """The part of the package that a module lies in."""
    return (module.split(".") + [""])[1]


def floor_of(module: str) -> int:
    return FLOOR.get(room_of(module), GROUND)


GRAPH = {name: imported(path) for name, path in NAMES.items()}


@pytest.mark.parametrize("name", GRAPH)
def test_imports_run_down(name):
    for other in GRAPH[name]:
        same_room = room_of(name) == room_of(other) or floor_of(name) == GROUND
        assert floor_of(other) < floor_of(name) or (floor_of(other) == floor_of(name) and same_room), other


def test_no_imports_run_in_circles():
    left = {name: set(others) for name, others in GRAPH.items()}
    while free := [name for name, others in left.items() if not others]:
        left = {name: others.difference(free) for name, others in left.items() if name not in free}
    assert not left


def test_imports_inside_functions_are_read():
    assert "llr_fast.plot" in GRAPH["llr_fast.paper.mnist"]


def test_every_room_is_there():
    assert {room for rooms in FLOORS for room in rooms} <= {room_of(name) for name in NAMES}


def test_no_module_is_hidden_by_a_name_of_its_package():
    for package in (name for name, path in NAMES.items() if path.name == "__init__.py"):
        here = importlib.import_module(package)
        for module in pkgutil.iter_modules(here.__path__):
            found = getattr(here, module.name, None)
            assert found is None or getattr(found, "__name__", None) == f"{package}.{module.name}"


def test_lengths_of_files():
    lengths = sorted(len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in MODULES)
    assert lengths[-1] < 300 and lengths[len(lengths) // 2] < 150


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:llr_fast|csrc|tests|benches|docs)/[\w/.]*)`", PAGE))))
def test_files_named_on_the_page_exist(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "path, names", re.findall(r"`((?:llr_fast|csrc|tests)/[\w/.]+)`:\s+((?:`[\w.]+`(?:,\s+)?)+)", PAGE)
)
def test_functions_named_on_the_page_are_in_their_files(path, names):
    source = (ROOT / path).read_text(encoding="utf-8")
    for name in re.findall(r"`([\w.]+)`", names):
        *_, last = name.split(".")
        assert re.search(rf"\b(?:def|class) {last}\b|\b{last}\(|^{last}(?::.*)? =", source, re.MULTILINE), name


def test_the_page_names_functions():
    assert len(re.findall(r"`(?:llr_fast|csrc)/[\w/.]+`:\s+`", PAGE)) > 15
