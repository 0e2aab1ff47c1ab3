"""Tokenizers that crash, hang or take memory, and the process that does so in their place."""

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from click.testing import CliRunner

import tolpack
from tolpack.cli import main
from tolpack.errors import ConfigError
from tolpack.model.text import TextTokenizer, read_token_ids
from tolpack.runtime.worker_process import Request, WorkerError, WorkerProcess

LETTERS = {letter: number for number, letter in enumerate("abcdeĠ ")}


def tokenizer(**changes):
    """Return the parts of a small ``tokenizer.json``."""
    model = {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
        "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
        "model": model, **changes,
    }  # fmt: skip


def split(pattern):
    """Return a pre-tokenizer that splits by a regular expression."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": False}  # fmt: skip


def save(folder, value):
    """Write a ``tokenizer.json``; returns its path."""
    path = folder / "tokenizer.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return path


HOSTILE = {
    "no unknown token": tokenizer(model={"type": "WordLevel", "vocab": {"a": 0},
                                         "unk_token": "[UNK]"}),
    "a pattern that takes for ever": tokenizer(pre_tokenizer=split("(a+)+$")),
    "a pattern in a normalizer": tokenizer(normalizer={
        "type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "x"}),
    "gigabytes of padding": tokenizer(padding={
        "strategy": {"Fixed": 4_000_000_000}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}),
    "a text that grows a thousandfold six times": tokenizer(normalizer={
        "type": "Sequence", "normalizers": [{
            "type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}] * 6}),
    "a damaged pattern": tokenizer(pre_tokenizer=split("(")),
    "deep JSON": b'{"a":' * 100_000,
    "no JSON": b"\xff\xfe",
    "an empty file": b"",
    "an id past 32 bits": tokenizer(model={"type": "WordLevel", "vocab": {"a": 2**32},
                                           "unk_token": "a"}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_tokenizers_end_in_an_error(tmp_path, name):
    """Panics, aborts, loops and bombs in the library are one ConfigError that names the file."""
    path = save(tmp_path, HOSTILE[name])
    with pytest.raises(ConfigError, match=r"tokenizer .*tokenizer\.json"):
        TextTokenizer(path).encode("a" * 60 + "b")


def test_a_tokenizer_that_died_of_a_text_takes_the_next(tmp_path):
    """One text that crashes the library leaves the tokenizer as it was."""
    names = TextTokenizer(save(tmp_path, HOSTILE["a text that grows a thousandfold six times"]))
    for _ in range(2):
        with pytest.raises(ConfigError):
            names.encode("a")
        assert names.encode("b").tolist() == [0]
    assert names.texts([1, 0, -1, 7, 2**32, 2**70]) == [" a", " [UNK]", None, None, None, None]


def test_the_command_line_survives_a_panic(tmp_path, memoryllm):
    """``rows --text`` with a tokenizer that panics exits with 1 and one line."""
    pack = tolpack.build(memoryllm, tmp_path / "p.tolpack").path
    path = save(tmp_path, HOSTILE["a pattern that takes for ever"])
    call = ["rows", str(pack), "--text", "a" * 60 + "b", "--tokenizer", str(path)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.startswith("Error: ")


def test_no_module_of_the_current_folder_is_run(tmp_path, monkeypatch):
    """A stranger's folder may hold a tokenizers.py: it is not what is imported."""
    (tmp_path / "tokenizers.py").write_text("raise SystemExit('stranger')", "utf-8")
    (tmp_path / "json.py").write_text("raise SystemExit('stranger')", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert TextTokenizer(save(tmp_path, tokenizer())).encode("a").tolist() == [1]


def test_line_ends_and_bytes_of_a_text(tmp_path):
    """Line ends are read as everywhere else, and a text that is not UTF-8 is refused, wherever."""
    model = {"type": "BPE", "vocab": {"a": 0, "\n": 1, "\r": 2}, "merges": [], "dropout": None}
    path = save(tmp_path, tokenizer(model=model))
    text = tmp_path / "a.txt"
    text.write_bytes(b"a\r\na\ra\n")
    assert read_token_ids(text, 9, path).tolist() == [0, 1, 0, 1, 0, 1]
    for data in (b"\xffaa", b"a" * (1 << 20) + b"\xc3", b"a" * ((1 << 20) - 1) + b"\xe2\x82"):
        text.write_bytes(data)
        with pytest.raises(ConfigError, match=r"cannot read text .*a\.txt"):
            read_token_ids(text, 9, path)
    text.write_bytes(b"a" * ((1 << 20) - 1) + "é\n".encode())
    assert read_token_ids(text, 9, path).size == 1 << 20


# -- the process ---------------------------------------------------------------------------------


def request(name, seconds=1.0, memory_bytes=64 << 20, body=b""):
    """Return a request to the worker of these tests."""
    return Request(name, {}, body, seconds, memory_bytes)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A child whose handlers crash, loop, sleep, and take memory."""
    (tmp_path / "unruly.py").write_text(
        "import os, time\n"
        "from tolpack.runtime.worker_process import serve\n"
        "def crash(values, body): os.abort()\n"
        "def loop(values, body):\n"
        "    while True: pass\n"
        "def sleep(values, body): time.sleep(1000)\n"
        "def take(values, body): return {}, bytes(1 << 30)\n"
        "def echo(values, body): print('noise'); return {}, body\n"
        "def leave(values, body): raise SystemExit(3)\n"
        "if __name__ == '__main__':\n"
        "    serve({f.__name__: f for f in (crash, loop, sleep, take, echo, leave)})\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = WorkerProcess("unruly")
    yield found
    found.close()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("crash", "SIGABRT"), ("loop", "more than 0.3 s"), ("sleep", "hangs"), ("leave", "3"),
     ("take", "MemoryError")],
)  # fmt: skip
def test_a_child_that_fails_costs_an_error(worker, name, reason):
    """Whatever ends a request, the next one is answered."""
    for _ in range(2):
        with pytest.raises(WorkerError, match=reason):
            worker.ask(request(name, seconds=0.3))
        assert worker.ask(request("echo", body=b"x" * (3 << 20)))[1] == b"x" * (3 << 20)


def test_a_fork_has_a_child_of_its_own(worker):
    """Parent and fork do not mix their answers, and the fork's end leaves the parent's child."""
    assert worker.ask(request("echo", body=b"parent"))[1] == b"parent"
    fork = os.fork()
    if fork == 0:
        answers = [worker.ask(request("echo", body=b"%d" % n))[1] for n in range(20)]
        os._exit(0 if answers == [b"%d" % n for n in range(20)] else 1)
    for number in range(20):
        assert worker.ask(request("echo", body=b"p%d" % number))[1] == b"p%d" % number
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert worker.ask(request("echo", body=b"after"))[1] == b"after"


def test_a_fork_waits_for_no_answer_of_another_thread(worker):
    """A process that forks while a thread asks has a child that can ask, too."""
    worker.ask(request("echo"))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(worker.ask, request("loop", seconds=2))
        while not worker._lock.locked():
            time.sleep(0.001)
        fork = os.fork()
        if fork == 0:
            signal.alarm(60)
            os._exit(0 if worker.ask(request("echo", body=b"x"))[1] == b"x" else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
        assert isinstance(waiting.exception(), WorkerError)


def test_a_child_that_was_killed_is_replaced(worker):
    """A child that something else ended costs one request."""
    worker.ask(request("echo"))
    os.kill(worker._child._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="SIGKILL"):
        worker.ask(request("echo"))
    assert worker.ask(request("echo", body=b"again"))[1] == b"again"


def test_texts_of_many_tokens_are_those_of_each(tmp_path):
    """Asking at once and one by one is the same."""
    model = {"type": "BPE", "vocab": LETTERS, "merges": [], "dropout": None}
    names = TextTokenizer(save(tmp_path, tokenizer(model=model)))
    ids = np.arange(-1, 12)
    assert names.texts(ids) == [names.text(int(n)) for n in ids]


def words(count):
    """Return `count` different strings of letters."""
    letters = "etaoinshrdlu"
    return ["".join(letters[n // 12**k % 12] for k in range(6)) for n in range(count)]


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
def test_vocabularies_of_the_usual_size_are_read(tmp_path, kind):
    """Those of today's models, 128,000 tokens (BPE) and 250,000 (Unigram), fit the limits."""
    if kind == "BPE":
        model = {"type": "BPE", "vocab": {word: n for n, word in enumerate(words(128_000))},
                 "merges": []}  # fmt: skip
    else:
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[word, -1.5] for word in words(250_000)]}
    path = save(tmp_path, tokenizer(model=model))
    assert TextTokenizer(path).vocab_size in (128_000, 250_000)
