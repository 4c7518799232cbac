"""The house rules of the design, read from the source: floors, the one doors, no pickles, nothing too long.

A new module needs a place in FLOORS: put it on the lowest floor from which it reaches what it imports.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up: a module may import from its own floor and from those below. A name ending in .* stands for all
# modules of a package that have no line of their own.
FLOORS = [
    ["mpigd_kernels", "mpigd_kernels.*"],
    [
        "mpigd.errors",
        "mpigd.config",
        "mpigd.launch",
        "mpigd.places",
        "mpigd.streams",
        "mpigd.predict_arguments",
        "mpigd.options",
        "mpigd.quantities",
    ],
    ["mpigd.recorder", "mpigd.begin", "mpigd.version"],
    ["mpigd.comm", "mpigd.elastic", "mpigd.watch", "mpigd.cache", "mpigd.adopted"],
    ["mpigd.world", "mpigd.placement"],
    ["mpigd.data", "mpigd.data.*"],
    ["mpigd.batches", "mpigd.reduce", "mpigd.limits", "mpigd.exact", "mpigd.ranking"],
    ["mpigd.model", "mpigd.model.*", "mpigd.metrics"],
    ["mpigd.costs"],
    ["mpigd.optim", "mpigd.optim.*", "mpigd.choices"],
    [
        "mpigd.checkpoint",
        "mpigd.callbacks",
        "mpigd.saving",
        "mpigd.replicas",
        "mpigd.progress",
        "mpigd.report",
        "mpigd.interrupt",
    ],
    [
        "mpigd.predict",
        "mpigd.predictions",
        "mpigd.build",
        "mpigd.info",
        "mpigd.summary",
        "mpigd.supervise",
        "mpigd.survive",
        "mpigd.validation",
    ],
    ["mpigd.optimality"],
    ["mpigd.diagnosis", "mpigd.trainer", "mpigd.rehearsal", "mpigd.pace", "mpigd.plan", "mpigd.crossval"],
    ["mpigd"],  # the Python interface
    ["mpigd.cli", "mpigd.convert_command", "mpigd.import_command", "mpigd.doctor", "mpigd.submit", "mpigd.__main__"],
]
# Libraries with one door: where they may be imported.
DOORS = {
    "mpi4py": {"mpigd.comm"},
    "numba": {"mpigd_kernels.*"},
    "llvmlite": {"mpigd_kernels.*"},
    "h5py": {
        "mpigd.data.convert",
        "mpigd.data.declared",
        "mpigd.data.foreign",
        "mpigd.data.foreign_matrix",
        "mpigd.data.guard",
        "mpigd.data.hdf5",
        "mpigd.data.headers",
        "mpigd.data.marks",
        "mpigd.data.source",
        "mpigd.data.texts",
        "mpigd.data.file_vectors",
        "mpigd.data.importers",
        "mpigd.data.column_names",
        "mpigd.data.pieces",
        "mpigd.data.unwritten",
        "mpigd.data.writer",
        "mpigd.data.stream",
        "mpigd.data.ids",
        "mpigd.data.second_pass",
        "mpigd.checkpoint",
        "mpigd.doctor",
    },
}
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PICKLING = {"read_pickle", "to_pickle", "np.load", "numpy.load", "np.lib.format.read_array", "torch.load", "joblib.load"}
HEAVY = {"pyarrow", "scipy", "pandas", "sklearn", "matplotlib", "hdf5plugin"}  # imported late, inside functions
GROUND = {"__future__", "collections", "contextlib", "math", "operator", "typing", "numpy", "numba", "llvmlite", "mpigd_kernels"}
FILE_LINES, FUNCTION_LINES = 300, 50


def name_of(path: Path) -> str:
    base = ROOT / "kernels" if ROOT / "kernels" in path.parents else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for folder in ("mpigd", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))}
EVERY = pytest.mark.parametrize("module", MODULES)


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported name below `node`, and whether inside a function; not those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from imports(other, inside)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports name the whole path"
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        else:
            yield from imports(child, inside or isinstance(child, ast.FunctionDef | ast.Lambda))


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(tree(module))}


def own(module: str) -> set[str]:
    """Modules of this project that `module` imports, wherever it does."""
    found = set()
    for name, _ in imports(tree(module)):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def listed(module: str, names: set[str]) -> bool:
    return module in names or module.rpartition(".")[0] + ".*" in names


def floor(module: str) -> int:
    exact = [level for level, names in enumerate(FLOORS) if module in names]
    found = exact or [level for level, names in enumerate(FLOORS) if listed(module, set(names))]
    assert found, f"{module} is new: give it a place in FLOORS of tests/unit/test_house.py"
    return found[0]


def calls(module: str) -> Iterator[str]:
    return (ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call))


def test_the_source_was_found() -> None:
    assert {"mpigd", "mpigd.comm", "mpigd.data.hdf5", "mpigd_kernels.dense"} <= set(MODULES)
    assert "mpigd.errors" in own("mpigd.comm")


def test_the_tables_hold_nothing_that_is_gone() -> None:
    for name in {name for names in [*FLOORS, *DOORS.values()] for name in names}:
        assert name.removesuffix(".*") in MODULES, f"{name} in a table of tests/unit/test_house.py does not exist"


@EVERY
def test_imports_go_down(module: str) -> None:
    here = floor(module)
    for other in own(module):
        assert floor(other) <= here, f"{module} (floor {here}) imports {other} (floor {floor(other)})"


def test_imports_make_no_circle() -> None:
    try:
        TopologicalSorter({module: own(module) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


@EVERY
def test_doors(module: str) -> None:
    for library in libraries(module) & set(DOORS):
        assert listed(module, DOORS[library]), f"{library} is imported in {', '.join(sorted(DOORS[library]))} only"


@EVERY
def test_files_are_opened_at_the_door_alone(module: str) -> None:
    if module not in ("mpigd.data.hdf5", "mpigd.data.guard"):
        assert "h5py.File" not in set(calls(module)), "open HDF5 files with mpigd.data.hdf5.open_read and create"


@EVERY
def test_nothing_runs_code_from_data(module: str) -> None:
    assert not libraries(module) & FORBIDDEN
    assert not set(calls(module)) & FORBIDDEN_CALLS
    assert not {name for name in calls(module) if name in PICKLING or name.rpartition(".")[2] in PICKLING}
    words = {keyword.arg for node in ast.walk(tree(module)) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert "allow_pickle" not in words


@EVERY
def test_heavy_libraries_are_imported_late(module: str) -> None:
    early = {name.split(".")[0] for name, inside in imports(tree(module)) if not inside}
    assert not early & HEAVY, "import it inside the function that needs it: every rank pays for it otherwise"


def names_of_bases(node: ast.ClassDef) -> set[str]:
    return {ast.unparse(base).rpartition(".")[2] for base in node.bases}


def callbacks() -> dict[str, ast.ClassDef]:
    """Every class of mpigd that is derived from Callback, at any depth."""
    nodes = [node for module in MODULES for node in ast.walk(tree(module))]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    found: dict[str, ast.ClassDef] = {}
    while new := {
        node.name: node
        for node in classes
        if node.name not in found and names_of_bases(node) & {"Callback", *found}
    }:  # fmt: skip
        found |= new
    return found


def state_name(node: ast.ClassDef) -> str | None:
    """The text that the class sets its own `state_name` to."""
    for part in node.body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "state_name":
            return str(ast.literal_eval(part.value))
    return None


def test_callbacks_with_state_have_names_of_their_own() -> None:
    """The names stand in checkpoints: they stay as they are, whatever the classes are called."""
    names = {}
    for name, node in callbacks().items():
        methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        stateful = {method in methods for method in ("state", "restore")}
        stateful.add(state_name(node) is not None)
        assert len(stateful) == 1, f"{name}: state, restore and state_name go together"
        if stateful == {True}:
            names[name] = state_name(node)
    used = list(names.values())
    assert len(set(used)) == len(used), f"two callbacks share their state in a checkpoint: {names}"
    other_parts = {"", "optimizer", "reducer", "w", "config", "notes", "format"}
    assert not set(used) & other_parts, "the name is that of another part of a checkpoint"
    assert set(used) >= {"earlystop", "history", "tolerance"}, "names in existing checkpoints"


def test_kernels_are_arithmetic_alone() -> None:
    for module in MODULES:
        if module.startswith("mpigd_kernels"):
            assert libraries(module) <= GROUND, module
            classes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ClassDef)]
            assert not classes or module == "mpigd_kernels.packed", module  # to numba a type is a class


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.stem)
def test_scripts_run_no_code_from_data(path: Path) -> None:
    source = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name, _ in imports(source)} & FORBIDDEN - {"multiprocessing"}
    made = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    assert not {ast.unparse(node.func) for node in made} & (FORBIDDEN_CALLS | {"read_pickle", "to_pickle"})
    assert "allow_pickle" not in {keyword.arg for node in made for keyword in node.keywords}


def test_mpi_moves_buffers_alone() -> None:
    """The lower-case methods of mpi4py's communicators and requests pickle, and end at 2 GiB."""
    raw = {"self._raw", "self._mpi", "self._mpi.Request", "self._mpi.COMM_WORLD", "MPI", "MPI.COMM_WORLD", "theirs", "own"}
    used = {
        node.attr
        for module in ("mpigd.comm", "mpigd.adopted", "mpigd.begin")
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in raw
    }
    assert {"Allreduce", "Bcast", "Irecv", "COMM_WORLD", "Dup", "Set_errhandler"} <= used, "the names above miss some calls"
    assert not {name for name in used if not name[0].isupper()}


@EVERY
def test_lengths(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= FILE_LINES, f"{lines} lines: a file wants to be split above {FILE_LINES}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name} has {length} lines, more than {FUNCTION_LINES}"
