"""``docs/scale.md``: its commands run as they stand, on servers of this machine, and print its
numbers.
"""

import io
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
RESULT = ROOT / "benchmarks" / "results" / "scale_model.json"


def commands(heading):
    """Return the lines after ``$`` of the console blocks of a section."""
    section = PAGE.partition(f"\n## {heading}\n")[2].split("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```", section, flags=re.M | re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def run(line, variables):
    """Run ``tolpack …`` in this process, with the shell's variables put in; returns its output."""
    program, *arguments = shlex.split(re.sub(r"\$(\w+)", lambda m: variables[m[1]], line))
    assert program == "tolpack"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}"
    return result.stdout


def run_example(*arguments):
    """Run ``python examples/…`` in this process; returns its output."""
    with redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments])
        runpy.run_path(arguments[0], run_name="__main__")
    return out.getvalue()


@pytest.fixture(scope="module")
def servers():
    """The servers of the page's second command: their variables, which are set meanwhile."""
    for name in ("distributed", "moto", "obstore", "tolpack.compress.dask_cluster"):
        pytest.importorskip(name)
    started = subprocess.run(
        [sys.executable, "examples/local_cluster.py"], cwd=ROOT, check=True, timeout=120,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    exported = re.findall(r"^export (\w+)=(.*)$", started.stdout, flags=re.M)
    variables = {name: shlex.split(value)[0] for name, value in exported}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield variables
    os.kill(int(variables["LOCAL_CLUSTER"]), signal.SIGTERM)


def test_there_are_four_commands():
    """One installs, one starts servers, one builds, one reads; the examples that they run exist."""
    install, start, build, rows = commands("In four commands")
    assert "-c constraints.txt -e '.[dev]'" in install
    assert start == 'eval "$(python examples/local_cluster.py)"'
    assert shlex.split(build)[:2] == ["tolpack", "build"]
    assert shlex.split(rows)[:2] == ["tolpack", "rows"]


def test_the_four_commands_build_and_read(servers, tmp_path, monkeypatch):
    """The pack in the object store has the very rows, and joined the very bytes, of one that is
    built without a cluster; what the manifest does not name is found and removed.
    """
    monkeypatch.chdir(ROOT)
    _, _, build, rows = commands("In four commands")
    run(build, servers)
    location = shlex.split(build)[shlex.split(build).index("-o") + 1]
    tolpack.build("tolpack/demo/model", tmp_path / "one.tolpack")
    shown = json.loads(run(f"{rows} --json", servers))
    local = rows.replace(location, str(tmp_path / "one.tolpack"))
    assert shown["rows"] == json.loads(run(f"{local} --json", servers))["rows"]
    with tolpack.open(location) as pack, tolpack.open(tmp_path / "one.tolpack") as one:
        ids = np.arange(0, pack.vocab_size, 7)
        assert np.array_equal(pack.rows(ids), one.rows(ids))
    tolpack.join(location, tmp_path / "joined.tolpack")
    assert (tmp_path / "joined.tolpack").read_bytes() == (tmp_path / "one.tolpack").read_bytes()
    check_cleaning(location)


def check_cleaning(location):
    """Only what the manifest does not name is listed, and removed when asked."""
    from tolpack.storage.locations import open_folder

    folder, lost = open_folder(location), "0" * 64 + ".part"
    folder.create(lost, b"left by a build that ended early")
    (command,) = commands("Cleaning up")
    arguments = shlex.split(command)[1:]
    assert arguments[1] == location
    assert run_example(*arguments).split() == [lost]
    assert run_example(*arguments, "--delete").split() == [lost]
    assert run_example(*arguments) == ""
    with tolpack.open(location) as pack:
        assert pack.rows([5]).size


def test_plans_print_the_bytes_that_the_page_shows(tmp_path, monkeypatch):
    """Sizes, parts, and the bytes that each phase reads and sends follow from the stand-in alone;
    times follow from the machine.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tolpack.compress.cluster_rates.start_seconds", lambda: 1.0)  # slow
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    make, ten, *others = commands("189 GiB on ten machines")
    run_example(*shlex.split(make)[1:])
    printed = run(ten, {})
    shown = PAGE.partition(f"$ {ten}\n")[2].partition("```")[0]
    assert fixed_words(printed) == fixed_words(shown)
    for line in others:
        assert "encode parts" in run(line, {})


def fixed_words(text):
    """Return the words of the tables of a plan that are the same on all machines."""
    found = []
    for line in text.splitlines():
        phase = re.match(r"(start|check|encode|write|index|all)\b", line)
        sizes = re.findall(r"[\d.]+ [KMG]B\b", line)
        if phase:
            found.append((phase[1], sizes))
        elif line.startswith("none ") or " parts; " in line:
            found.append(tuple(line.split()))
    assert len(found) == 8, text
    return found


def test_the_table_of_errors_is_that_of_the_benchmark():
    """The page's table is what `benchmarks/scale_model.py --show` prints of the result kept."""
    if not RESULT.exists():
        pytest.skip("not measured yet")
    import scale_model

    table = scale_model.markdown(json.loads(RESULT.read_text(encoding="utf-8"))["runs"])
    shown = PAGE.partition("<!-- python benchmarks/scale_model.py --show")[2].partition("-->")[2]
    assert shown.partition("<!-- end -->")[0].strip() == table
