"""First steps that are wrong: what is printed says what was given, and what to do.

Each entry is a command as it is typed, its exit code, and what the last line of standard error is.
"""

import gzip
import os
import pickle
import shlex
import subprocess
import sys
import zipfile
from argparse import Namespace

import h5py
import models
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import save_file

import tolpack
from tolpack.cli import main
from tolpack.container.file_kind import kind_of_bytes
from tolpack.errors import ConfigError
from tolpack.model.text_files import check_text_file
from tolpack.report.legends import build_legend

CONFIG = models.make_config()
WEIGHTS = "expected a checkpoint (.safetensors, .pt, .pth, or a folder with config.json)"
HUB = (
    "does not exist: tolpack reads local folders and URLs; if it is a model id, download it first "
    "(hf download google/gemma-3n-E2B --local-dir gemma-3n-E2B), then give the folder "
    "gemma-3n-E2B to the same command"
)
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
PICKLE = (
    "which tolpack does not load, because unpickling can run code: save the state dict alone "
    "(torch.save(model.state_dict(), NAME)), or convert it to .safetensors"
)
TEXT = "expected plain text, or token ids as .npy"
BUILD = "`tolpack build` makes packs of checkpoints and tables"


def _small_files():
    """Write files of other kinds than checkpoints, by a few bytes each."""
    whole = {
        "x.gguf": b"GGUF\3\0\0\0" + bytes(100),
        "x.html": PAGE,
        "page.safetensors": PAGE,
        "page.pt": PAGE,
        "page.tolpack": PAGE,
        "x.txt": b"Hello world, a text.\n" * 50,
        "x.json": b'{"a": 1}',
        "x.jsonl": b'{"text": "hello"}\n' * 50,
        "x.txt.gz": gzip.compress(b"hello world" * 50),
        "x.parquet": b"PAR1" + bytes(100),
        "x.pdf": b"%PDF-1.7\n" + bytes(100),
        "empty.tolpack": b"",
        "empty.pt": b"",
        "empty.txt": b"",
        "lfs.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        "unknown": b"\x85\xdc\xa4\x9c" * 50,
        "unknown.pt": b"\x85\xdc\xa4\x9c" * 50,
        "tokenizer.model": b"\x0a\x05\x0a\x03" * 50,
        "x.pkl": pickle.dumps({"a": 1}),
    }
    for name, data in whole.items():
        with open(name, "wb") as file:
            file.write(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, its pack, and files of many kinds."""
    path, before = tmp_path_factory.mktemp("wrong"), os.getcwd()
    os.chdir(path)
    try:
        _make_files(path)
    finally:
        os.chdir(before)
    return path


def _make_files(path):
    _small_files()
    models.save_model(path, name="m.pt")
    state = models.make_state(CONFIG)
    for name in ("model", "noconfig", "half"):
        (path / name).mkdir()
        models.save_safetensors(path / name / "model.safetensors", state)
    models.save_config(path / "model" / "config.json", CONFIG)
    (path / "half" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}'
    )
    for name in ("emptydir", "tok"):
        (path / name).mkdir()
    (path / "packs").mkdir()
    tolpack.build("m.pt", "p.tolpack")
    (path / "packs" / "p.tolpack").write_bytes((path / "p.tolpack").read_bytes())
    tolpack.split("p.tolpack", "parts")
    torch.save({"model": torch.nn.Linear(3, 3)}, "module.pt")
    torch.save({"args": Namespace(a=1), "model": state, "config": CONFIG}, "args.pt")
    torch.save({"n": np.float64(3), "model": state, "config": CONFIG}, "numpy.pt")
    save_file({"a": np.ones((3, 3), np.float32)}, "x.safetensors")
    (path / "named.bin").write_bytes((path / "x.safetensors").read_bytes())
    np.save("x.npy", np.zeros((4, 2, 3), np.float32))
    np.save("ids.npy", models.zipf_ids(400, 97))
    np.savez("x.npz", a=np.ones(3))
    with h5py.File("x.h5", "w") as file:
        file["t"] = np.zeros((4, 2, 3), np.float32)
    with zipfile.ZipFile("x.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    (path / "tok" / "tokenizer.json").write_text(
        '{"version": "1.0", "truncation": null, "model": {}}'
    )


# Last lines of standard error begin with "Error: ", which is left out here.
STEPS = [
    # a model id
    ("build google/gemma-3n-E2B", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("plan google/gemma-3n-E2B", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("inspect google/gemma-3n-E2B", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("keys google/gemma-3n-E2B", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("eval google/gemma-3n-E2B --text x.txt", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("study google/gemma-3n-E2B --text x.txt", 1, f"checkpoint google/gemma-3n-E2B {HUB}"),
    ("verify google/gemma-3n-E2B", 1, f"pack google/gemma-3n-E2B {HUB}"),
    ("rows google/gemma-3n-E2B 1", 1, f"pack google/gemma-3n-E2B {HUB}"),
    ("build absent.pt", 1, "checkpoint absent.pt does not exist"),
    ("verify absent.tolpack", 1, "cannot open absent.tolpack: No such file or directory"),
    # other files given as a checkpoint
    ("build x.txt", 1, f"x.txt is a text file, {WEIGHTS}"),
    ("build x.json", 1, f"x.json is a JSON file, {WEIGHTS}"),
    ("build x.zip", 1, f"x.zip is a zip archive, {WEIGHTS}: unpack it, and give what it holds"),
    ("build x.npz", 1, f"x.npz is an .npz archive, {WEIGHTS}: save its array alone with "
     "numpy.save, as .npy"),
    ("build x.txt.gz", 1, f"x.txt.gz is a gzip archive, {WEIGHTS}: unpack it, and give what it "
     "holds"),
    ("build x.parquet", 1, f"x.parquet is a Parquet file, {WEIGHTS}"),
    ("build page.safetensors", 1, f"page.safetensors is an HTML page, {WEIGHTS}: a failed download "
     "leaves such a page, so download the file again"),
    ("build page.pt", 1, f"page.pt is an HTML page, {WEIGHTS}: a failed download leaves such a "
     "page, so download the file again"),
    ("build empty.pt", 1, f"empty.pt is an empty file, {WEIGHTS}: copy or download it again"),
    ("build lfs.safetensors", 1, f"lfs.safetensors is a Git LFS pointer, {WEIGHTS}: run git lfs "
     "pull to get the file itself"),
    ("build model/config.json", 1, f"model/config.json is a model's configuration, {WEIGHTS}: give "
     "the folder that it is in"),
    ("build tok/tokenizer.json", 1, f"tok/tokenizer.json is a tokenizer, {WEIGHTS}: it goes to "
     "--tokenizer"),
    ("build half/model.safetensors.index.json", 1, "half/model.safetensors.index.json is the index "
     f"of a checkpoint's shards, {WEIGHTS}: give the folder that it is in"),
    ("build named.bin", 1, "named.bin is a .safetensors file, and its name does not say so: rename "
     "it to end in .safetensors"),
    ("build unknown.pt", 1, "unknown.pt cannot be read as a torch file (it does not begin as files "
     "of torch do): it is cut off, or not a checkpoint: copy it again, save a state dict alone "
     "with torch.save, or convert it to .safetensors"),
    ("build emptydir", 1, "emptydir holds no .safetensors file, nor .bin, .pth or .pt: is it the "
     "right folder?"),
    ("build noconfig", 1, "noconfig carries no config: give one with --config config.json, or put "
     "it beside"),
    ("build half", 1, "model.safetensors.index.json names shard 'model-2.safetensors', which is "
     "not in half: copy it there; it holds 1 tensors, 'b' among them"),
    ("build x.npy --layers 2 -o x.npy", 1, "output x.npy is one of the inputs: give another name"),
    # pickles
    ("build module.pt", 1, "module.pt holds a pickled object of class "
     f"torch.nn.modules.linear.Linear, {PICKLE}"),
    ("build args.pt", 1, f"args.pt holds a pickled object of class argparse.Namespace, {PICKLE}"),
    ("build numpy.pt", 1, "numpy.pt holds a pickled call of numpy._core.multiarray.scalar, "
     f"{PICKLE}"),
    ("build x.pkl", 1, f"x.pkl is a pickle, {WEIGHTS}: pickles can run code and are not read; save "
     "the state dict as .safetensors, or with torch.save as .pt"),
    # a pack given as a checkpoint
    *[(f"{words} p.tolpack{more}", 1, f"p.tolpack is a pack, {WEIGHTS} or a plain table: give the "
       "checkpoint that it was made from; tolpack inspect p.tolpack shows what it holds, and "
       "tolpack eval CHECKPOINT p.tolpack measures it")
      for words, more in (("build", " -o o.tolpack"), ("plan", ""), ("eval", " --text ids.npy"),
                          ("study", " --text ids.npy"))],
    ("build parts", 1, f"parts is the folder of a pack, {WEIGHTS} or a plain table: give the "
     "checkpoint that it was made from; tolpack inspect parts shows what it holds, and tolpack "
     "eval CHECKPOINT parts measures it"),
    ("keys p.tolpack", 1, "p.tolpack is a pack: its rows are sums over keys that it does not hold. "
     "Give the MemoryLLM checkpoint that the rows were computed from"),
    # other files given as a pack
    *[(f"{words}", 1, "m.pt is a torch checkpoint, not a pack: build one with tolpack build m.pt")
      for words in ("verify m.pt", "rows m.pt 1", "bench m.pt", "convert m.pt o.npy",
                    "split m.pt o", "join m.pt o.tolpack", "eval m.pt m.pt --text ids.npy",
                    "strip model --pack m.pt -o o", "merge m.pt p.tolpack -o o.tolpack")],
    ("verify x.gguf", 1, "x.gguf is a GGUF file, not a pack: build one with tolpack build x.gguf"),
    ("verify x.safetensors", 1, "x.safetensors is a .safetensors file, not a pack: build one with "
     "tolpack build x.safetensors"),
    ("verify x.npy", 1, "x.npy is a .npy array, not a pack: build one with tolpack build x.npy"),
    ("verify x.h5", 1, "x.h5 is an HDF5 file, not a pack: build one with tolpack build x.h5"),
    ("verify x.txt", 1, f"x.txt is a text file, not a pack: {BUILD}"),
    ("verify x.zip", 1, "x.zip is a zip archive, not a pack: unpack it, and give what it holds"),
    ("verify page.tolpack", 1, "page.tolpack is an HTML page, not a pack: a failed download leaves "
     "such a page, so download the file again"),
    ("verify empty.tolpack", 1, "empty.tolpack is an empty file, not a pack: copy or download it "
     "again"),
    ("verify model/config.json", 1, "model/config.json is a model's configuration, not a pack: "
     "build one with tolpack build model"),
    ("verify x.pdf", 1, f"x.pdf is a PDF document, not a pack: {BUILD}"),
    ("verify unknown", 1, f"unknown is not a pack, nor a file of another known kind: {BUILD}"),
    ("verify model", 1, "folder model holds no manifest.json, but a checkpoint, model.safetensors: "
     "build a pack with tolpack build model"),
    ("verify packs", 1, "folder packs holds no manifest.json, but a pack, p.tolpack: give "
     "packs/p.tolpack"),
    ("verify emptydir", 1, "folder emptydir holds no manifest.json: it is not a pack in parts, or "
     "one that is not finished"),
    # texts and tokenizers
    *[(f"{words} absent.txt", 1, "cannot read text absent.txt: No such file or directory")
      for words in ("eval m.pt p.tolpack --text", "build m.pt -o o.tolpack --calibrate",
                    "plan m.pt --calibrate")],
    ("build m.pt -o o.tolpack --calibrate m.pt", 1, f"text m.pt is a torch checkpoint, {TEXT}"),
    ("build m.pt -o o.tolpack --calibrate x.txt", 1, "x.txt is text: give its --tokenizer "
     "tokenizer.json, or ids as .npy"),
    ("eval m.pt p.tolpack --text p.tolpack", 1, f"text p.tolpack is a pack, {TEXT}"),
    ("eval m.pt p.tolpack --text empty.txt", 1, "text empty.txt is empty: give one of at least 2 "
     "tokens"),
    ("eval m.pt p.tolpack --text emptydir", 1, "cannot read text emptydir: it is a folder, "
     "expected a file"),
    ("eval m.pt p.tolpack --text x.jsonl", 1, "text x.jsonl holds JSON lines, whose names and "
     "quotation marks would be taken for text: save what they say as plain text"),
    ("eval m.pt p.tolpack --text x.txt.gz", 1, f"text x.txt.gz is a gzip archive, {TEXT}: unpack "
     "it, and give what it holds"),
    ("eval m.pt p.tolpack --text tok/tokenizer.json", 1, "text tok/tokenizer.json is a tokenizer, "
     f"{TEXT}: it goes to --tokenizer"),
    ("eval m.pt p.tolpack --text x.npy", 1, "x.npy must hold a one-dimensional array of integers"),
    *[(f"{words} --tokenizer x.txt", 1, "tokenizer x.txt is a text file, expected the "
       "tokenizer.json of a model")
      for words in ("eval m.pt p.tolpack --text x.txt",
                    "build m.pt -o o.tolpack --calibrate x.txt")],
    ("eval m.pt p.tolpack --text x.txt --tokenizer model/config.json", 1, "tokenizer "
     "model/config.json is a model's configuration, expected the tokenizer.json of a model"),
    ("eval m.pt p.tolpack --text x.txt --tokenizer tokenizer.model", 1, "tokenizer tokenizer.model "
     "is a SentencePiece model, expected the tokenizer.json of a model: transformers writes one "
     "with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"),
    ("build m.pt -o o.tolpack --frequencies x.txt", 1, "cannot read --frequencies x.txt: it is a "
     "text file, expected a .npy array"),
    ("build m.pt -o o.tolpack --frequencies x.npy", 1, "--frequencies x.npy must hold integer "
     "counts"),
    ("build noconfig -o o.tolpack --config x.txt", 1, "config x.txt is not valid JSON: it is a "
     "text file"),
    # settings
    *[(f"{name} m.pt --bits auto --size 12", 2, "Invalid value for '--size': --size 12 is 12 "
       "bytes, and no pack is so small: give a unit, like 12MB, or a percentage of the FP16 table, "
       "like 12%") for name in ("build", "plan")],
    ("build m.pt --bits auto --size 500", 2, "Invalid value for '--size': --size 500 is 500 bytes, "
     "and no pack is so small: give a unit, like 500MB"),
    *[(f"{name} m.pt --rank 500{more}", 1, "--rank 500 is outside 1 … 24 (min of hidden_size and "
       "vocab_size)") for name in ("build", "plan") for more in ("", " --bits auto")],
    *[(f"{name} m.pt --drop 10{more}", 1, "--drop 10 is out of range 0 … 2 (layers): leave it out")
      for name in ("build", "plan") for more in ("", " --bits auto")],
    ("build m.pt --size 12%", 2, "--size chooses ranks or bits: it needs --rank auto or --bits "
     "auto"),
    # outputs
    ("build m.pt -o absent/p.tolpack", 1, "cannot write absent/p.tolpack: there is no folder "
     "absent; make it, or give another -o"),
    ("build m.pt -o p.tolpack", 1, "output p.tolpack exists: use --force to replace it, or another "
     "-o"),
    ("build m.pt -o m.pt", 1, "output m.pt is one of the inputs: give another name"),
    ("build m.pt -o model", 1, "output model is a folder: give a file name with -o"),
    *[(f"eval m.pt p.tolpack --text ids.npy --{option} absent/x.{suffix}", 1, "cannot write "
       f"absent/x.{suffix}: there is no folder absent; make it, or name another")
      for option, suffix in (("csv", "csv"), ("plot", "png"), ("report", "html"))],
    ("convert p.tolpack absent/x.npy", 1, "cannot write absent/x.npy: there is no folder absent; "
     "make it, or name another"),
    ("buidl m.pt", 2, "No such command 'buidl'. Did you mean 'build'?"),
]  # fmt: skip


def run(words):
    """Run the command line in this process."""
    return CliRunner().invoke(main, shlex.split(words))


@pytest.mark.parametrize(("words", "code", "text"), STEPS, ids=[step[0] for step in STEPS])
def test_wrong_step_says_what_to_do(folder, monkeypatch, words, code, text):
    """The error is the first thing that is printed, but for usage: nothing was read before it."""
    monkeypatch.chdir(folder)
    before = sorted(os.listdir())
    result = run(words)
    lines = [line for line in result.stderr.splitlines() if line]
    assert (result.exit_code, lines[-1]) == (code, f"Error: {text}")
    assert len(lines) == (1 if code == 1 else 3), result.stderr
    assert result.stdout == ""
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize("bits", ["4", "auto"])
def test_folder_that_is_not_writable_is_refused_first(folder, monkeypatch, bits):
    """An output that cannot be created is noticed before the input is read."""
    monkeypatch.chdir(folder)

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    result = run(f"build m.pt -o o.tolpack --bits {bits}")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: cannot write o.tolpack: Permission denied: name a file in a folder that can be "
        "written\n"
    )


@pytest.mark.parametrize(
    ("data", "name"),
    [(b"\x80\x04\x95" + bytes(8) + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "a torch checkpoint"),
     (b"\xef\xbb\xbf<html>", "an HTML page"), ("é".encode() * 2048 + b"\xc3", "a text file"),
     (b"text\0", None), (b"\xe9t\xe9", None), (b"{" * 20, "a JSON file")],
)  # fmt: skip
def test_kinds_by_first_bytes(data, name):
    """What the table of signatures says of bytes at the edges of its kinds."""
    kind = kind_of_bytes(data[:4096])
    assert (kind and kind.name) == name


@pytest.mark.parametrize(
    "start",
    [
        "GGUF is a file format",
        "PAR1 is fine",
        "BZh is a beginning",
        "ARROW1 too",
        "%PDF-files are documents",
        "x" * 257 + "ustar",
    ],
)
def test_texts_that_begin_with_a_signature(start, tmp_path):
    """Are texts, short or long; with bytes that no text has they are what the signature names."""
    path = tmp_path / "x.txt"
    for text in (start, start + " é, and more" * 1000):
        path.write_text(text, "utf-8")
        check_text_file(path)
    for more in (b"\0", b"\xff\xfe", b"\x15"):
        path.write_bytes(start.encode() + more * 100)
        with pytest.raises(ConfigError, match=rf"text .* is an? .*, {TEXT}"):
            check_text_file(path)
    assert kind_of_bytes(b"GGUF", ".gguf").name == "a GGUF file"


def test_plan_takes_the_command_line_of_build(folder, monkeypatch):
    """Options that say where and how a pack is written change nothing of a plan."""
    monkeypatch.chdir(folder)
    given = "m.pt --bits 8 --rank 50%"
    more = " -o o.tolpack --force --resume --processes 2 --cluster tcp://h:1 --part-size 256MB"
    assert run(f"plan {given}{more}").stdout == run(f"plan {given}").stdout != ""


def test_defaults_are_those_that_a_sweep_names(folder, monkeypatch, tmp_path):
    """A build without options gives the pack of the arguments that reports name."""
    from tolpack.evaluation.sweep_grid import PackOptions

    monkeypatch.chdir(folder)
    named = PackOptions().arguments
    assert named == "--rank none --bits 4"
    run(f"build m.pt -o {tmp_path / 'a'}")
    run(f"build m.pt -o {tmp_path / 'b'} {named}")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_legend_explains_the_columns_that_are_shown(folder, monkeypatch):
    """Below a table stands what its columns are; a large error of a layer is explained."""
    monkeypatch.chdir(folder)
    shown = run("inspect p.tolpack").stdout
    assert "bits: stored bits a value, scales included" in shown
    assert "entropy:" not in shown
    columns = ["layer", "rank", "bits", "entropy", "R(D)", "rel. error", "bytes"]
    text = build_legend(columns, [0.1, None, 2.63])
    assert "\nentropy: bits a value that an ideal coder needs which learns how often" in text
    assert "\nR(D): bits a value that a normal distribution of the same variance needs" in text
    assert "\nstep: distance between neighbouring quantized values" in text
    assert "A relative error over 50% of a layer is not a fault where layers compensate" in text
    assert "not a fault" not in build_legend(columns, [0.1, None])
    assert "not a fault" not in build_legend(["layer", "bits", "rel. error"], [2.63])


# -- Ctrl-C --------------------------------------------------------------------------------------

NOTHING = "interrupted: nothing was written yet; the same command begins again"
CACHED = f"{NOTHING}, and takes a calibration that was finished from the cache"
# Sends itself SIGINT, as Ctrl-C does, once a phase of the build has made some progress.
INTERRUPTED = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs behind it
from contextlib import contextmanager
from tolpack.cli import main
from tolpack.commands.terminal import Terminal
name, phase = sys.argv.pop(1), Terminal.phase

@contextmanager
def stopped(self, title, total, unit):
    with phase(self, title, total, unit) as done:
        def update(count):
            done(count)
            if title == name:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(5)
        yield update

Terminal.phase = stopped
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
@pytest.mark.parametrize(
    ("phase", "more", "cache", "told"),
    [("checking the input", "--bits 4", "cache", NOTHING),
     ("calibration", "--bits auto --calibrate ids.npy --max-kld 0.01", "cache", CACHED),
     ("calibration", "--bits auto --calibrate ids.npy --max-kld 0.01", "off", NOTHING),
     ("trying", "--bits auto --calibrate ids.npy --max-kld 0.01", "cache", CACHED),
     ("encoding", "--bits 4", "cache",
      "interrupted: the same command with --resume continues what was written, i.tolpack.partial"),
     ("checking", "--bits 4", "cache",
      "interrupted: i.tolpack is complete; only the comparison with its input was not finished")],
)  # fmt: skip
def test_ctrl_c_says_how_to_go_on(folder, tmp_path, phase, more, cache, told):
    """What is said after SIGINT is true, and what it says gives the pack of an undisturbed run."""
    for name in ("m.pt", "ids.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = [sys.executable, "-c", INTERRUPTED]
    build = ["build", "m.pt", "-o", "i.tolpack", *more.split()]
    env = {**os.environ, "TOLPACK_CACHE": cache}
    done = subprocess.run(
        [*words, phase, *build], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert told in done.stderr.splitlines()
    assert done.stderr.endswith("Aborted!\n")
    if "--resume" in told:
        resumed = [*words, "", *build, "--resume"]
        subprocess.run(resumed, cwd=tmp_path, env=env, check=True, capture_output=True)
    if "begins again" not in told:
        whole = tolpack.build(folder / "m.pt", tmp_path / "whole.tolpack").path
        assert (tmp_path / "i.tolpack").read_bytes() == whole.read_bytes()
        assert not (tmp_path / "i.tolpack.partial").exists()


@pytest.mark.parametrize(
    ("words", "place"),
    [("eval m.pt --sweep bits=8 --text ids.npy", "tolpack.evaluation.sweep.run_sweep"),
     ("study m.pt --text ids.npy", "tolpack.evaluation.study.run_study")],
)  # fmt: skip
def test_ctrl_c_in_many_measurements(folder, monkeypatch, words, place):
    """Sweeps and studies say that what was measured is kept."""
    monkeypatch.chdir(folder)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupt)
    result = run(words)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-3:] == [
        "interrupted: what was measured is kept, and the same command without --fresh continues "
        "after it",
        "",
        "Aborted!",
    ]
