"""The rules of CONTRIBUTING.md that no linter knows: lengths, and numpydoc on what users call."""

import ast
import inspect
import re
import statistics
import tomllib
from pathlib import Path

import pytest

import tolpack

ROOT = Path(tolpack.__file__).parent
# Functions; modules. Docstrings do not count: nobody shall save on them.
MOST, NINETY_PERCENT, MEDIAN = 60, 30, 12
MOST_OF_MODULE = 400
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# What users call beside `tolpack.__all__`: functions, and classes with their public methods.
ALSO_PUBLIC = (
    "tolpack.torch.ToLMemory",
    "tolpack.torch.embedding.PackEmbedding",
    "tolpack.hf.load",
    "tolpack.hf.mount",
    "tolpack.hf.strip",
    "tolpack.compress.build.build",
    "tolpack.export.convert.convert",
    "tolpack.evaluation.evaluator.evaluate",
)


def parsed(path):
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


TREES = {path.relative_to(ROOT).as_posix(): parsed(path) for path in sorted(ROOT.rglob("*.py"))}


def lines_of_docstring(node):
    """Return how many lines the docstring of a module, class or function takes."""
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def functions(tree):
    """Return every function of a module, methods and inner functions among them."""
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def function_lines(node):
    """Return the lines of a function from ``def`` on, without docstrings."""
    inner = sum(map(lines_of_docstring, functions(node)))
    return node.end_lineno - node.lineno + 1 - inner


def test_named_rule_sets_are_on():
    """The comment above ruff's ``select`` names every set that is on, and no other."""
    text = (ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
    selected = set(tomllib.loads(text)["tool"]["ruff"]["lint"]["select"])
    comment = text.partition("[tool.ruff.lint]")[2].partition("select =")[0]
    named = re.findall(r"\(([A-Z0-9, ]+)\)", comment)
    assert {name.strip() for group in named for name in group.split(",")} == selected


def test_functions_are_short():
    """No function has more than 60 lines, 90 % have at most 30, and half of them at most 12."""
    lengths = {
        f"{name}:{node.lineno} {node.name}": function_lines(node)
        for name, tree in TREES.items()
        for node in functions(tree)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST} == {}
    ordered = sorted(lengths.values())
    assert ordered[int(0.9 * len(ordered))] <= NINETY_PERCENT
    assert statistics.median(ordered) <= MEDIAN


def test_modules_are_short():
    """No module has more than 400 lines."""
    lengths = {}
    for name, tree in TREES.items():
        documented = [n for n in ast.walk(tree) if isinstance(n, (*FUNCTIONS, ast.ClassDef))]
        lines = len((ROOT / name).read_text(encoding="utf-8").splitlines())
        lengths[name] = lines - sum(map(lines_of_docstring, [tree, *documented]))
    assert {name: lines for name, lines in lengths.items() if lines > MOST_OF_MODULE} == {}


def definition(dotted):
    """Return the syntax tree of a function or class by its full name."""
    module, _, name = dotted.removeprefix("tolpack.").rpartition(".")
    path = f"{module.replace('.', '/')}.py" if module else "__init__.py"
    tree = TREES.get(path) or TREES[f"{module.replace('.', '/')}/__init__.py"]
    conditional = [inner for node in tree.body if isinstance(node, ast.If) for inner in node.body]
    for node in [*tree.body, *conditional]:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return definition(f"{node.module}.{name}")
    raise LookupError(dotted)


def public():
    """Return what users call: full name → its definition."""
    names = [f"tolpack.{name}" for name in tolpack.__all__ if name != "__version__"]
    found = {}
    for dotted in [*names, *ALSO_PUBLIC]:
        found[dotted] = node = definition(dotted)
        if isinstance(node, ast.ClassDef):
            methods = [one for one in node.body if isinstance(one, FUNCTIONS)]
            found |= {f"{dotted}.{m.name}": m for m in methods if not m.name.startswith("_")}
    return found


def faults(node):
    """Return what the docstring of a public function or class lacks."""
    text = ast.get_docstring(node) or ""
    missing = set() if text else {"a docstring"}
    function = node
    if isinstance(node, ast.ClassDef):
        own = {one.name: one for one in node.body if isinstance(one, FUNCTIONS)}
        function = own.get("__init__")
        if function is None:
            return missing
    elif any(ast.unparse(one) == "property" for one in node.decorator_list):
        return missing
    named = documented(section(text, "Parameters"))
    missing |= {f"parameter {name}" for name in parameters(function) - named}
    missing |= {f"{name}, which it does not take" for name in named - parameters(function)}
    if returns(function) and not section(text, "Returns"):
        missing.add("Returns")
    if raises(function) and not section(text, "Raises"):
        missing.add("Raises")
    return missing


def section(text, title):
    """Return the lines of a section of a numpydoc docstring; none, if it is not there."""
    match = re.search(rf"^{title}\n-{{{len(title)}}}\n(.*?)(?=^\S+\n-+\n|\Z)", text, re.M | re.S)
    return match[1].splitlines() if match else []


def documented(lines):
    """Return the names in a section: those before the colon of ``a, b : type``."""
    heads = [line.partition(" : ")[0] for line in lines if line and not line[0].isspace()]
    return {name.strip(" *") for head in heads for name in head.split(",")}


def parameters(function):
    """Return the names that a caller gives."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    every += [one for one in (arguments.vararg, arguments.kwarg) if one is not None]
    return {one.arg for one in every} - {"self", "cls"}


def returns(function):
    """Whether a function returns something."""
    return function.returns is not None and ast.unparse(function.returns) != "None"


def raises(function):
    """Whether a function raises an error itself, other than one that passes through."""
    return any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(function))


@pytest.mark.parametrize("name", public())
def test_public_names_have_numpydoc(name):
    """All that users call says what it takes, what it returns and what it raises."""
    assert faults(public()[name]) == set()


def test_settings_of_build_and_convert_can_be_seen():
    """`help` and an editor show the settings of `tolpack.build` and `tolpack.convert` by name."""
    for function, setting in ((tolpack.build, "max_ppl_increase"), (tolpack.convert, "dtype")):
        assert setting in inspect.signature(function).parameters


def test_contributing_names_files_that_exist():
    """Every file and folder that CONTRIBUTING.md names is there."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:tolpack|formats|tests|docs|benchmarks)/[^`]*)`", text)
    assert [path for path in paths if not (ROOT.parent / path).exists()] == []
