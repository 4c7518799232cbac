"""The house rules of the design, checked in the source: layers, doors, no pickles, short files.

Packages import downwards only, imports for types included. A new package needs a place in PACKAGES.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground up: a package may import from itself and from those before it.
PACKAGES = [
    "mpigd_kernels", "mpigd.errors", "mpigd.version", "mpigd.config", "mpigd.parallel",
    "mpigd.storage", "mpigd.matrix", "mpigd.tables", "mpigd.data", "mpigd.reduction", "mpigd.model",
    "mpigd.optim", "mpigd.scoring", "mpigd.training", "mpigd", "mpigd.commands", "mpigd.__main__",
]  # fmt: skip
# Libraries with one door: where they may be imported.
DOORS = {
    "mpi4py": {"mpigd.parallel.comm"},
    "numba": {"mpigd_kernels.*", "mpigd_kernels.simd.*"},
    "llvmlite": {"mpigd_kernels.*", "mpigd_kernels.simd.*"},
    "h5py": {
        "mpigd.data.convert",
        "mpigd.storage.dataset_checks",
        "mpigd.data.foreign",
        "mpigd.data.foreign_matrix",
        "mpigd.storage.safe_open",
        "mpigd.storage.hdf5",
        "mpigd.storage.attribute_text",
        "mpigd.data.foreign_marks",
        "mpigd.data.metadata",
        "mpigd.storage.text_datasets",
        "mpigd.data.file_vectors",
        "mpigd.tables.importer",
        "mpigd.data.column_names",
        "mpigd.storage.chunked_reads",
        "mpigd.data.unwritten",
        "mpigd.tables.writer",
        "mpigd.storage.growing_dataset",
        "mpigd.tables.ids",
        "mpigd.tables.second_pass",
        "mpigd.training.checkpoint",
        "mpigd.commands.doctor",
    },
}
FORBIDDEN = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "multiprocessing"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
PICKLING = {
    "read_pickle",
    "to_pickle",
    "np.load",
    "numpy.load",
    "np.lib.format.read_array",
    "torch.load",
    "joblib.load",
}
HEAVY = {
    "pyarrow",
    "scipy",
    "pandas",
    "sklearn",
    "matplotlib",
    "hdf5plugin",
}  # imported late, inside functions
GROUND = {
    "__future__",
    "collections",
    "contextlib",
    "math",
    "operator",
    "typing",
    "numpy",
    "numba",
    "llvmlite",
    "mpigd_kernels",
}
FILE_STATEMENTS, FUNCTION_STATEMENTS = 250, 36


def name_of(path: Path) -> str:
    base = ROOT / "kernels" if ROOT / "kernels" in path.parents else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


MODULES = {
    name_of(path): path
    for folder in ("mpigd", "kernels")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
EVERY = pytest.mark.parametrize("module", MODULES)


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(node: ast.AST, inside: bool = False, types: bool = False) -> Iterator[tuple[str, bool]]:
    """Every imported name below `node`, and whether inside a function.

    types: whether those under ``if TYPE_CHECKING`` count too.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not types:
            for other in child.orelse:
                yield from imports(other, inside)
        elif isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports name the whole path"
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        else:
            yield from imports(
                child, inside or isinstance(child, ast.FunctionDef | ast.Lambda), types
            )


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(tree(module))}


def own(module: str, types: bool = False) -> set[str]:
    """Modules of this project that `module` imports, at any depth of its code.

    types: whether imports for types alone count too.
    """
    found = set()
    for name, _ in imports(tree(module), types=types):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name and name != module:
            found.add(name)
    return found


def listed(module: str, names: set[str]) -> bool:
    return module in names or module.rpartition(".")[0] + ".*" in names


def package(module: str) -> str:
    """The longest name in PACKAGES that the module is, or lies in."""
    found = [name for name in PACKAGES if module == name or module.startswith(f"{name}.")]
    if module != "mpigd":  # the public interface alone, not all that lies in its folder
        found = [name for name in found if name != "mpigd"]
    assert found, f"{module} lies in no package of PACKAGES in tests/unit/test_house.py"
    return max(found, key=len)


def calls(module: str) -> Iterator[str]:
    return (ast.unparse(node.func) for node in ast.walk(tree(module)) if isinstance(node, ast.Call))


def test_the_source_was_found() -> None:
    assert {"mpigd", "mpigd.parallel.comm", "mpigd.storage.hdf5", "mpigd_kernels.dense"} <= set(
        MODULES
    )
    assert "mpigd.errors" in own("mpigd.parallel.comm")


def test_the_tables_hold_nothing_that_is_gone() -> None:
    for name in {*PACKAGES, *(name for names in DOORS.values() for name in names)}:
        assert name.removesuffix(".*") in MODULES, (
            f"{name} in a table of tests/unit/test_house.py does not exist"
        )


@EVERY
def test_imports_go_down(module: str) -> None:
    here = PACKAGES.index(package(module))
    for other in own(module, types=True):
        there = PACKAGES.index(package(other))
        assert there <= here, (
            f"{module} imports {other}, but {PACKAGES[there]} stands above {PACKAGES[here]}"
        )


def test_imports_make_no_circle() -> None:
    try:
        TopologicalSorter({module: own(module) for module in MODULES}).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


@EVERY
def test_doors(module: str) -> None:
    for library in libraries(module) & set(DOORS):
        assert listed(module, DOORS[library]), (
            f"{library} is imported in {', '.join(sorted(DOORS[library]))} only"
        )


@EVERY
def test_files_are_opened_at_the_door_alone(module: str) -> None:
    if module not in ("mpigd.storage.hdf5", "mpigd.storage.safe_open"):
        assert "h5py.File" not in set(calls(module)), (
            "open HDF5 files with mpigd.storage.hdf5.open_read and create"
        )


@EVERY
def test_nothing_runs_code_from_data(module: str) -> None:
    assert not libraries(module) & FORBIDDEN
    assert not set(calls(module)) & FORBIDDEN_CALLS
    assert not {
        name for name in calls(module) if name in PICKLING or name.rpartition(".")[2] in PICKLING
    }
    words = {
        keyword.arg
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        for keyword in node.keywords
    }
    assert "allow_pickle" not in words


@EVERY
def test_heavy_libraries_are_imported_late(module: str) -> None:
    early = {name.split(".")[0] for name, inside in imports(tree(module)) if not inside}
    assert not early & HEAVY, (
        "import it inside the function that needs it: every rank pays for it otherwise"
    )


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
            assert not classes or module == "mpigd_kernels.simd.vector_type", (
                module
            )  # to numba a type is a class


@pytest.mark.parametrize(
    "path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda path: path.stem
)
def test_scripts_run_no_code_from_data(path: Path) -> None:
    source = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name, _ in imports(source)} & FORBIDDEN - {"multiprocessing"}
    made = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    assert not {ast.unparse(node.func) for node in made} & (
        FORBIDDEN_CALLS | {"read_pickle", "to_pickle"}
    )
    assert "allow_pickle" not in {keyword.arg for node in made for keyword in node.keywords}


def test_mpi_moves_buffers_alone() -> None:
    """The lower-case methods of mpi4py's communicators and requests pickle, and end at 2 GiB."""
    raw = {
        "self._raw",
        "self._mpi",
        "self._mpi.Request",
        "self._mpi.COMM_WORLD",
        "MPI",
        "MPI.COMM_WORLD",
        "theirs",
        "own",
    }
    used = {
        node.attr
        for module in (
            "mpigd.parallel.comm",
            "mpigd.parallel.adopted_comm",
            "mpigd.parallel.mpi_start",
        )
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in raw
    }
    assert {"Allreduce", "Bcast", "Irecv", "COMM_WORLD", "Dup", "Set_errhandler"} <= used, (
        "the names above miss some calls"
    )
    assert not {name for name in used if not name[0].isupper()}


@EVERY
def test_lengths(module: str) -> None:
    """Sizes count in statements: a file that explains itself is not longer for it."""
    count = statements(tree(module))
    assert count <= FILE_STATEMENTS, (
        f"{count} statements: a file wants to be split above {FILE_STATEMENTS}"
    )
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            count = statements(node)
            assert count <= FUNCTION_STATEMENTS, (
                f"{node.name}: {count} statements, more than {FUNCTION_STATEMENTS}"
            )


def statements(node: ast.AST) -> int:
    return sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - isinstance(node, ast.stmt)
