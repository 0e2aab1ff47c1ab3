"""The command line: help, JSON contracts, exit codes, and what goes to which stream."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "build",
    "eval",
    "generate",
    "lm-eval",
    "study",
    "inspect",
    "verify",
    "rows",
    "diff",
    "plan",
    "convert",
    "split",
    "join",
    "strip",
    "edit",
    "merge",
    "keys",
    "cache",
    "demo",
    "card",
)


def run(*args):
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def printed(*args):
    """Run a command that must succeed and return the JSON that is all of its standard output."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def pack(memoryllm, tmp_path_factory):
    """A pack of the tiny MemoryLLM with a basis and a dropped layer."""
    out = tmp_path_factory.mktemp("pack") / "p.tolpack"
    return tolpack.build(memoryllm, out, rank="9", drop="1", bits=8).path


# -- help ----------------------------------------------------------------------------------------


def test_commands_are_those_of_the_contract():
    """The group has these commands; later ones are absent, not stubbed."""
    assert set(main.commands) <= {*COMMANDS, "bench"}
    assert set(COMMANDS) <= set(main.commands)
    listed = run("--help").stdout
    assert all(f"\n  {name} " in listed for name in main.commands)


@pytest.mark.parametrize("name", sorted(main.commands))
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_an_example(name, flag):
    """The help of each command shows an example call and describes every option."""
    result = run(name, flag)
    assert result.exit_code == 0
    assert f"\n  tolpack {name}" in result.stdout
    for param in main.commands[name].params:
        if param.param_type_name == "option":
            assert param.help
            assert max(param.opts, key=len) in result.stdout


@pytest.mark.parametrize("name", sorted(main.commands))
def test_helps_are_whole_sentences(name):
    """The summary of a command and the help of each option end with a full stop, so that none is
    cut off or left empty; a default that is told stands before it or is added by click.
    """
    command = main.commands[name]
    assert command.get_short_help_str(200).endswith(".")
    for param in command.params:
        if param.param_type_name == "option":
            text = re.sub(r" *\[default: .+?\]", "", param.help)
            assert text.endswith("."), (param.opts, param.help)


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_report_command_has_json(name):
    """Each command can print JSON."""
    assert "--json" in {opt for param in main.commands[name].params for opt in param.opts}


def test_examples_of_the_help_parse():
    """Every example in a command's help is accepted by that command's parser."""
    for name, command in main.commands.items():
        lines = [line.strip() for line in (command.help or "").splitlines()]
        examples = [line.split("   ")[0] for line in lines if line.startswith(f"tolpack {name}")]
        assert examples
        for example in examples:
            command.make_context(name, shlex.split(example)[2:])


def test_version_from_a_plain_checkout():
    """`python cli.py --version` works in a checkout and gives the library's version."""
    done = subprocess.run(
        [sys.executable, "cli.py", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"tolpack, version {tolpack.__version__}"
    assert done.stderr == ""


# -- JSON ----------------------------------------------------------------------------------------


def test_build_json(memoryllm, tmp_path):
    """`build --json` prints the pack, its size and its layers; progress is on stderr alone."""
    out = tmp_path / "p.tolpack"
    result = run("build", memoryllm, "-o", out, "--rank", "9,5,24", "--bits", "8", "--json")
    found = json.loads(result.stdout)
    assert set(found) == {
        "path", "bytes", "ratio_fp16", "bits_per_weight", "layers", "warnings", "provenance",
        "ffn_bytes", "ffn_bytes_16", "table_bytes",
    }  # fmt: skip
    assert found["path"] == str(out)
    assert found["bytes"] == out.stat().st_size
    assert [layer["rank"] for layer in found["layers"]] == [9, 5, 24]
    assert "embed_tokens.weight" in result.stderr
    assert "token order: by token id" in result.stderr


def test_eval_json(memoryllm, pack, token_ids):
    """`eval --json` prints baseline and packs with exactly the keys of the contract."""
    found = printed("eval", memoryllm, pack, "--text", token_ids, "--context", "8")
    assert set(found) == {"context", "baseline", "packs", "warnings"}
    scores = {"ppl", "ppl_se", "nll_nats", "tokens", "ffn_bytes", "ffn_bytes_16"}
    assert set(found["baseline"]) == scores
    assert set(found["packs"][0]) == scores | {
        "path", "bytes", "ratio_fp16", "bits_per_weight", "ppl_increase_pct",
        "ppl_increase_se_pct", "read_bytes_per_token", "resident_bytes",
        "macs_per_token", "kl_mean_nats", "kl_mean_se_nats", "kl_median_nats", "kl_p99_nats",
        "kl_max_nats", "top1_agreement_pct", "top1_agreement_se_pct",
    }  # fmt: skip
    assert found["context"] == 8
    assert found["packs"][0]["path"] == str(pack)


def test_inspect_json(pack):
    """`inspect --json` prints the keys of the contract with the pack's values."""
    found = printed("inspect", pack)
    assert set(found) >= {
        "format_version", "vocab_size", "hidden_size", "num_layers", "kept_layers",
        "dropped_layers", "bytes", "ratio_fp16", "bits_per_weight", "layers", "chunks",
    }  # fmt: skip
    assert (found["vocab_size"], found["num_layers"], found["hidden_size"]) == (97, 3, 24)
    assert (found["kept_layers"], found["dropped_layers"]) == ([0, 2], [1])
    assert found["bytes"] == pack.stat().st_size
    assert [layer["rank"] for layer in found["layers"]] == [9, None, 9]
    assert all({"rank", "bits"} <= set(layer) for layer in found["layers"])
    assert all({"tokens", "bytes", "encoding"} <= set(chunk) for chunk in found["chunks"])
    assert sum(chunk["tokens"] for chunk in found["chunks"]) == 97


def test_verify_json(pack):
    """`verify --json` prints the path, the verdict and no damage for a sound pack."""
    assert printed("verify", pack) == {"path": str(pack), "ok": True, "damages": []}


def test_rows_json(pack):
    """`rows --json` prints all values of the rows asked for, in their order."""
    found = printed("rows", pack, 96, 0, 96)
    assert set(found) == {"token_ids", "rows", "stats"}
    assert found["token_ids"] == [96, 0, 96]
    with tolpack.open(pack) as opened:
        assert np.array_equal(np.array(found["rows"], np.float32), opened.rows([96, 0, 96]))


def test_plan_json(memoryllm):
    """`plan --json` prints one object per setting."""
    found = printed("plan", memoryllm)
    assert set(found) == {"plans"}
    assert len(found["plans"]) > 3
    (one,) = printed("plan", memoryllm, "--rank", "50%", "--bits", "8", "--drop", "2")["plans"]
    assert (one["rank"], one["bits"], one["macs_per_token"]) == ("50%", 8, 2 * 12 * 24)


# -- text ----------------------------------------------------------------------------------------


def test_tables_are_printed_on_stdout(memoryllm, pack, token_ids, tmp_path):
    """Without --json each command prints its table on stdout, and stdout alone holds results."""
    out = tmp_path / "p.tolpack"
    built = run("build", memoryllm, "-o", out, "--drop", "0", "--rank", "5")
    assert "smaller than FP16" in built.stdout
    assert "dropped" in built.stdout
    assert "embed_tokens" not in built.stdout
    assert "perplexity" in run("eval", memoryllm, pack, "--text", token_ids).stdout
    assert "97 tokens × 3 layers × 24" in run("inspect", pack).stdout
    assert run("verify", pack).stdout == f"{pack}: ok\n"
    assert "token" in run("rows", pack, 5).stdout
    assert "paper's formula" in run("plan", memoryllm).stdout


def test_two_dimensional_table_from_the_command_line(tmp_path):
    """A plain table with --layers builds and plans."""
    np.save(tmp_path / "t.npy", np.zeros((40, 12), np.float16))
    assert run("build", tmp_path / "t.npy", "--layers", 3, "--bits", 16).exit_code == 0
    assert (tmp_path / "t.tolpack").exists()
    assert run("plan", tmp_path / "t.npy", "--layers", 3).exit_code == 0


def test_every_build_option_arrives(tmp_path, token_ids):
    """Config, text, counts, size, resume and force given together do what they say."""
    config = models.make_config()
    bare = models.save_pt(tmp_path / "m.pt", models.make_state(config))
    given = models.save_config(tmp_path / "c.json", config)
    counts = tmp_path / "counts.npy"
    np.save(counts, np.bincount(np.load(token_ids), minlength=97))
    out = tmp_path / "p.tolpack"
    out.write_bytes(b"old")
    result = run("build", bare, "-o", out, "--config", given, "--rank", "auto", "--bits", "8",
                 "--size", "60KB", "--calibrate", token_ids, "--frequencies", counts, "--resume",
                 "--force", "--drop", "1")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert out.stat().st_size <= 60_000
    with tolpack.open(out) as opened:
        assert opened.kept_layers == (0, 2)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["nonsense"],
        ["build"],
        ["build", "m.pt", "--bits", "some"],
        ["build", "m.pt", "--bits", "3"],
        ["build", "m.pt", "--drop", "auto:"],
        ["plan", "m.pt", "--drop", "auto"],
        ["build", "m.pt", "--drop", "9-7"],
        ["build", "m.pt", "--max-ppl-increase", "much"],
        ["build", "m.pt", "--max-ppl-increase", "1%"],
        ["build", "m.pt", "--bits", "auto", "--size", "9%", "--max-ppl-increase", "1%"],
        ["build", "m.pt", "--drop", "auto"],
        ["build", "m.pt", "--max-memory", "much"],
        ["build", "m.pt", "--threads", "0"],
        ["build", "m.pt", "--map", "meta", "--key-map", "map.toml"],
        ["eval", "m.pt", "--text", "t.txt", "--map", "meta", "--key-map", "map.toml"],
        ["build", "m.pt", "--map", "bogus"],
        ["inspect", "m.pt", "--arch", "bogus"],
        ["build", "m.pt", "--rank", "bogus"],
        ["build", "m.pt", "--rank", "0%"],
        ["build", "m.pt", "--rank", "auto", "--size", "much"],
        ["build", "m.pt", "--rank", "auto", "--size", "0"],
        ["build", "m.pt", "--rank", "auto", "--size", "9" * 400],
        ["build", "m.pt", "--layers", "0"],
        ["build", "m.pt", "surplus"],
        ["eval", "m.pt"],
        ["eval", "m.pt", "--text", "t.txt", "--context", "0"],
        ["eval", "m.pt", "--text", "t.txt", "--sweep", "x"],
        ["inspect"],
        ["verify"],
        ["rows", "p.tolpack"],
        ["rows", "p.tolpack", "five"],
        ["rows", "p.tolpack", "5", "--text", "five"],
        ["diff", "p.tolpack"],
        ["diff", "p.tolpack", "q.tolpack", "--arch", "memoryllm"],
        ["plan", "m.pt", "--bits", "5"],
        ["plan", "m.pt", "--rank", "bogus"],
        ["demo", "surplus"],
    ],
)
def test_wrong_usage_exits_with_2(args):
    """Wrong usage exits with 2, explains itself on stderr, and prints nothing on stdout."""
    result = run(*args)
    assert result.exit_code == 2
    if args:  # without a command the group prints its help
        assert "Error: " in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize(
    "args",
    [
        ["build", "{tmp}/absent.pt"],
        ["build", "{model}", "-o", "{tmp}"],
        ["build", "{model}", "-o", "{tmp}/absent/p.tolpack"],
        ["build", "{model}", "-o", "{model}", "--force"],
        ["build", "{model}", "-o", "{tmp}/p", "--rank", "25"],
        ["build", "{model}", "-o", "{tmp}/p", "--drop", "3"],
        ["build", "{model}", "-o", "{tmp}/p", "--rank", "auto", "--size", "600B"],
        ["build", "{model}", "-o", "{tmp}/p", "--frequencies", "{tmp}/absent.npy"],
        ["build", "{model}", "-o", "{tmp}/p", "--calibrate", "{tmp}/absent.txt"],
        ["build", "{model}", "-o", "{tmp}/p", "--config", "{tmp}/absent.json"],
        ["eval", "{model}", "{tmp}/absent.tolpack", "--text", "{ids}"],
        ["eval", "{model}", "--text", "{tmp}/absent.npy"],
        ["inspect", "{tmp}/absent.tolpack"],
        ["inspect", "{tmp}/absent.pt"],
        ["inspect", "{model}", "--key-map", "{tmp}/absent.toml"],
        ["inspect", "{model}", "--map", "lit-gpt"],
        ["verify", "{model}"],
        ["verify", "{tmp}"],
        ["rows", "{pack}", "97"],
        ["rows", "{pack}", "--", "-1"],
        ["rows", "{pack}", "--text", "five"],
        ["diff", "{pack}", "{tmp}/absent.tolpack"],
        ["diff", "{model}", "{pack}"],
        ["rows", "{pack}", "99999999999999999999"],
        ["plan", "{tmp}/absent.pt"],
        ["demo", "-o", "{ids}"],
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_errors_are_one_line_and_exit_with_1(memoryllm, pack, token_ids, tmp_path, args, as_json):
    """What cannot be done gives one line on stderr, nothing on stdout, and exit code 1."""
    names = {"tmp": tmp_path, "model": memoryllm, "pack": pack, "ids": token_ids}
    filled = [arg.format(**names) for arg in args]
    result = run(filled[0], *(["--json"] if as_json else []), *filled[1:])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.stderr


def test_error_about_a_name_with_a_line_break_is_one_line(tmp_path):
    """Even a path with line breaks gives one line."""
    result = run("inspect", tmp_path / "a\nb.tolpack")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1


def test_no_error_reaches_the_user_as_a_traceback(tmp_path):
    """A failing command in a process of its own ends with one line and exit code 1."""
    done = subprocess.run(
        [sys.executable, "cli.py", "inspect", str(tmp_path / "absent.tolpack")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: ")


def test_damaged_pack_makes_verify_exit_with_1(pack, tmp_path):
    """`verify` names what is damaged and exits with 1, as text and as JSON."""
    data = bytearray(pack.read_bytes())
    data[-100] ^= 1
    damaged = tmp_path / "d.tolpack"
    damaged.write_bytes(data)
    text = run("verify", damaged)
    assert text.exit_code == 1
    assert text.stdout.endswith("1 damaged place\n")
    result = run("verify", damaged, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["ok"]
    assert set(found["damages"][0]) == {
        "place", "first_slot", "rows", "token_ranges", "code", "message", "places", "more_ranges",
        "table",
    }  # fmt: skip


def test_existing_pack_is_kept_without_force(memoryllm, tmp_path):
    """`build` onto an existing file exits with 1 and names --force."""
    out = tmp_path / "p.tolpack"
    out.write_bytes(b"precious")
    result = run("build", memoryllm, "-o", out)
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert out.read_bytes() == b"precious"
