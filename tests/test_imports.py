"""What importing and reading load: numpy and zstandard, never torch; each in a fresh process."""

import subprocess
import sys

import numpy as np
import pytest

HEAVY = ("torch", "click", "tqdm", "scipy", "safetensors", "tokenizers", "h5py")


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """A small pack of a plain table."""
    import tolpack

    folder = tmp_path_factory.mktemp("pack")
    np.save(folder / "t.npy", np.random.default_rng(0).standard_normal((50, 2, 8), np.float32))
    return tolpack.build(folder / "t.npy", rank="4").path


def run(script, *args):
    """Run a script in a fresh interpreter; returns its standard output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_neither_torch_nor_click():
    """`import tolpack` loads nothing that reading does not need."""
    script = f"import sys, tolpack; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(script).strip() == "[]"


def test_all_names_are_there_without_torch():
    """Every public name can be imported where torch cannot; `build` says so when it is called."""
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from tolpack import *\n"
        "import tolpack\n"
        "try:\n"
        "    build('model.pt')\n"
        "except tolpack.ConfigError as error:\n"
        "    print(error, set(tolpack.__all__) <= set(dir(tolpack)))\n"
    )
    assert run(script).strip() == "building needs torch: pip install 'tolpack[build]' True"


def test_reading_needs_numpy_and_zstandard_only(pack):
    """Rows are read and verified where nothing else can be imported."""
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY}))\n"
        "import tolpack\n"
        "with tolpack.open(sys.argv[1]) as pack:\n"
        "    print(pack.rows([0, 49]).shape, pack.verify())\n"
    )
    assert run(script, pack).strip() == "(2, 2, 8) []"


@pytest.mark.parametrize("args", [["inspect"], ["verify"], ["rows", "3"], ["diff"]])
def test_reading_commands_do_not_load_torch(pack, args):
    """`inspect`, `verify`, `rows` and the `diff` of packs work where torch cannot be imported."""
    script = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'safetensors', 'tokenizers', 'h5py'):\n"
        "    sys.modules[name] = None\n"
        "from tolpack.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    more = [pack] if args == ["diff"] else args[1:]
    assert run(script, args[0], pack, *more)


def test_building_without_torch_says_what_to_install(pack):
    """A command that needs torch where there is none gives one line with the remedy."""
    for command in (["build"], ["plan"], ["eval", "--text", "x"], ["diff", "t.npy"], ["demo"]):
        script = (
            "import sys\n"
            "sys.modules['torch'] = None\n"
            "from tolpack.cli import main\n"
            "main(sys.argv[1:])\n"
        )
        path = [] if command == ["demo"] else [str(pack)]
        done = subprocess.run(
            [sys.executable, "-c", script, command[0], *path, *command[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1
        assert "needs torch: pip install 'tolpack[build]'" in done.stderr
