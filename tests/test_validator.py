"""``formats/v1/validate.py``, written from the specification alone, and the library agree."""

import random
import struct
import sys
from pathlib import Path

import pytest
from edits import MEANINGS, RANGES
from packs import TARGET, forge, write
from test_hostile_packs import FRAMED, FRAMES

from tolpack.codecs.zero_runs import decode_columns
from tolpack.errors import FormatError, TolpackError
from tolpack.pack import open_first_table

ROOT = Path(__file__).parents[1]
GOLDEN = sorted((ROOT / "formats" / "v1" / "golden").glob("*.tolpack"))
sys.path[:0] = [str(ROOT / "fuzz"), str(ROOT / "formats" / "v1")]

from mutate import mutate  # noqa: E402 (found by the line above)
from plain import seeds  # noqa: E402
from validate import BadPack, Check, validate  # noqa: E402


def verdict(data):
    """Return the code with which ``validate.py`` refuses a file, or ``None``."""
    try:
        validate(data)
    except BadPack as error:
        return error.code
    return None


def library_verdict(path, data):
    """Return what the library has against a file when it opens and verifies it, or ``None``."""
    path.write_bytes(data)
    try:
        with open_first_table(path) as pack:
            return next((damage.message for damage in pack.verify()), None)
    except TolpackError as error:
        return str(error)


def disagreements(path, count, seed):
    """Yield (input, verdict, the library's) of mutated packs where only one refuses."""
    source, starts = random.Random(seed), seeds()
    for _ in range(count):
        data = mutate(source.choice(starts), source.getrandbits(64))
        found, expected = verdict(data), library_verdict(path, data)
        if (found is None) != (expected is None):
            yield data, found, expected


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_packs_are_valid(path):
    """Every golden pack passes all rules."""
    assert verdict(path.read_bytes()) is None


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The bytes of the pack that is edited."""
    return write(tmp_path_factory.mktemp("target") / "pack", TARGET).data


@pytest.mark.parametrize(
    ("edit", "code"), RANGES + MEANINGS, ids=lambda v: v if isinstance(v, str) else v.__name__
)
def test_malformed_headers_are_refused(edit, code, target):
    """What the library refuses when it opens a file, the validator does, for the same reason."""
    with pytest.raises(BadPack) as caught:
        Check(forge(target, edit)).opening()
    assert caught.value.code == code


@pytest.mark.parametrize("name", FRAMES)
def test_malformed_frames_are_refused(name, tmp_path):
    """Frames that are not one plain frame of the right size are refused for the same reason."""
    code = verdict(write(tmp_path / "pack", FRAMED, compress=FRAMES[name]).data)
    assert code == ("frame-extent" if name == "bomb" else "frame")


def _runs(source):
    """Return rows, bytes of a record, and the content of a zstd-runs frame that may be right."""
    rows, size = source.randrange(1, 4), source.randrange(1, 40)
    symbols = bytes(source.choices((0x08, 0x11, 0x3F, 0x00, 0x78, 0x10), k=source.randrange(12)))
    literals = source.randbytes(sum(symbol & 15 == 8 for symbol in symbols))
    count = len(symbols) + source.choices((0, 1, -1, 1000), (8, 1, 1, 1))[0]
    literals = source.choices((literals, literals + b"a", literals[1:]), (8, 1, 1))[0]
    return rows, size, struct.pack("<I", max(count, 0)) + symbols + literals


def test_contents_of_frames_of_runs_mean_the_same():
    """Of contents of zstd-runs frames, right and wrong, both give the same records or none."""
    source, good = random.Random(0), 0
    for _ in range(2000):
        rows, size, content = _runs(source)
        try:
            expected = decode_columns(content, rows, size, "here").tobytes()
        except FormatError as error:
            with pytest.raises(BadPack) as caught:
                Check(b"").expanded(content, rows * size, rows)
            assert caught.value.code == error.code
        else:
            assert Check(b"").expanded(content, rows * size, rows) == expected
            good += 1
    assert 500 < good < 1500


def test_mutated_packs_get_the_same_verdict(tmp_path):
    """The validator refuses what the library refuses or finds damaged, and nothing else."""
    assert list(disagreements(tmp_path / "pack", 1500, seed=0)) == []
