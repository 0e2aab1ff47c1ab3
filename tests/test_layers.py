"""Imports point strictly downward between the layers of the package, without cycles within one."""

import ast
from pathlib import Path

import tolpack

ROOT = Path(tolpack.__file__).parent
LEVELS = {
    "errors": 0, "version": 0, "forking": 0, "progress": 0, "scratch": 0, "pool": 0, "cache": 0,
    "buffers": 0, "sizes": 0, "machine": 0, "files": 0, "isolation": 0,
    "container": 1,
    "codecs": 2,
    "reading": 3, "pack": 3,
    "torch": 4, "bench": 4, "sources": 4, "summary": 4, "table_files": 4, "converting": 4,
    "building": 4, "building.allocate": 4,
    "building.settings": 4, "building.layout": 4, "building.limits": 4,
    "building.frame_sample": 4, "building.components": 4, "building.header_size": 4,
    "building.layer_basis": 4, "building.step_search": 4,
    "reference": 5, "building.passes": 5,
    "building.weighing": 6, "building.loss_model": 6, "building.rank_trial": 6,
    "building.shaping": 6, "building.carried": 6, "building.trial": 6,
    "building.folding": 6, "building.drop_search": 6, "building.rounding": 6,
    "building.assembly": 6, "building.fixed_bits": 6, "building.entropy_coded": 6,
    "planning": 6, "workshop": 6, "judging": 6, "builder": 6, "evaluate": 6,
    "comparing": 6, "differences": 6,
    "studying": 7, "report": 7, "terminal": 7, "demo": 7, "": 7,
    "commands": 8,
    "cli": 9,
}  # fmt: skip


def modules():
    """Return every module of the package: dotted name without ``tolpack.`` → its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path, known):
    """Return the modules of the package that a file imports, also inside functions.

    Imports under ``if TYPE_CHECKING`` are left out.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [
                full if _short(full := f"{node.module}.{alias.name}") in known else node.module
                for alias in node.names
            ]
        else:
            continue
        found |= {_short(name) for name in names if name.split(".")[0] == "tolpack"}
    return found


def _short(name):
    return name.removeprefix("tolpack").removeprefix(".")


def _level(name):
    return LEVELS[_place(name)]


def _place(name):
    """Return the entry of `LEVELS` that a module falls under: its own, or its top package's."""
    return name if name in LEVELS else name.split(".")[0]


def test_every_module_has_a_level():
    """A new module must be given its place among the layers."""
    assert {_place(name) for name in modules()} == set(LEVELS)
    assert all(name in LEVELS for name in modules() if name.startswith("building."))


def test_imports_point_downward():
    """No module imports one of a higher layer."""
    known = modules()
    upward = [
        f"{name} (L{_level(name)}) imports {other} (L{_level(other)})"
        for name, path in known.items()
        for other in imports_of(path, known)
        if _level(other) > _level(name)
    ]
    assert upward == []


def test_no_cycles():
    """Modules of one layer may import each other, but never in a circle."""
    known = modules()
    graph = {name: imports_of(path, known) - {name} for name, path in known.items()}
    remaining = dict(graph)
    while remaining:
        free = [name for name, needs in remaining.items() if not needs & set(remaining)]
        assert free, f"modules in a circle: {sorted(remaining)}"
        for name in free:
            del remaining[name]


def test_imported_names_are_modules_of_the_package():
    """Every import of the package's own modules names one that exists."""
    known = modules()
    missing = {other for path in known.values() for other in imports_of(path, known)} - set(known)
    assert missing == set()
