"""Imports point strictly downward between the layers of the package, without cycles within one."""

import ast
from pathlib import Path

import tolpack

ROOT = Path(tolpack.__file__).parent
# From the ground up; ``""`` is the package's own ``__init__``.
LAYERS = (
    "errors version", "runtime", "storage ngrams", "codecs", "container", "reading", "pack",
    "torch sources", "export", "model workspace", "hf", "lm_eval calibration keys", "compress",
    "edits evaluation", "report demo", "", "commands", "cli",
)  # fmt: skip
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in (names.split() or [""])}


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
    return LEVELS[name.split(".")[0]]


def test_every_package_has_a_level():
    """A new package, or module at the top, must be given its place among the layers."""
    assert {name.split(".")[0] for name in modules()} == set(LEVELS)


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


def test_the_picture_shows_the_layers():
    """CONTRIBUTING's picture has every package, and module at the top, once and in their order."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = text.partition("## The house")[2].split("```")[1].strip().splitlines()
    picture = [line.split("  ")[0].split() for line in lines]
    shown = [name for names in picture for name in names]
    assert sorted(shown) == sorted(set(LEVELS) - {""})
    levels = [[LEVELS[name] for name in names] for names in picture]
    assert all(min(above) >= max(below) for above, below in zip(levels, levels[1:]))
