"""Packs are read from anything that gives bytes: the reader asks for no kind of file."""

from pathlib import Path

import numpy as np
import pytest
from packs import RECIPES, reference_rows, write

import tolpack
from tolpack.container import io_modes
from tolpack.container.byte_source import ByteSource
from tolpack.container.verified_reader import Container
from tolpack.reading.verification import find_damage


class Remote(ByteSource):
    """What an object store would be: it has a size, gives ranges, and nothing else."""

    mode = "remote"

    def __init__(self, path):
        self._data = Path(path).read_bytes()
        self.size = len(self._data)
        self.released = 0
        super().__init__()

    def read_many(self, extents):
        """See `ByteSource`."""
        assert not self.is_closed
        self._count("single", len(extents), sum(length for _, length in extents))
        return [self._data[offset : offset + length] for offset, length in extents]

    def _release(self):
        self.released += 1


@pytest.fixture
def remote(monkeypatch):
    """`tolpack.open` knows the mode ``remote``."""
    monkeypatch.setitem(io_modes.IO_MODES, "remote", Remote)


@pytest.mark.parametrize("name", RECIPES)
def test_rows_come_from_any_source(name, remote, samples):
    """A class of two methods is enough: rows, prefetches and verification are the file's."""
    sample = samples[name]
    with tolpack.open(sample.path) as pack:
        expected = pack.rows(range(pack.vocab_size))
    with tolpack.open(sample.path, io="remote", cache="1MB") as pack:
        pack.prefetch(range(pack.vocab_size))
        assert np.array_equal(pack.rows(range(pack.vocab_size)), expected)
        assert pack.verify() == []
        assert pack.stats()["io"] == "remote"


def test_what_is_read_ahead_is_kept(remote, tmp_path):
    """A source that caches nothing itself is read once for a prefetch and the lookup after it."""
    sample = write(tmp_path / "pack", RECIPES["int4"])
    with tolpack.open(sample.path, io="remote") as pack:
        ids = np.arange(pack.vocab_size)
        pack._ahead.begin(lambda: pack._missing_blocks(ids)).result(30)
        before = pack.stats()["block_reads"]
        assert before > 0
        assert np.allclose(pack.rows(ids), reference_rows(sample.data), rtol=1e-6)
        assert pack.stats()["block_reads"] == before


def test_a_source_is_let_go_once_and_after_the_last_lease(samples):
    """`close` waits for who reads, refuses who comes later, and may be called again."""
    source = Remote(samples["f32"].path)
    container = Container.read_from(source)
    with source.lease():
        container.close()
        assert find_damage(container) == []
        assert source.released == 0
        with pytest.raises(tolpack.FileAccessError, match="closed"), source.lease():
            pass
    container.close()
    assert source.released == 1
    assert source.is_closed


def test_a_source_that_gives_no_pack_is_closed(tmp_path):
    """Opening fails and lets go of it."""
    (tmp_path / "junk").write_bytes(bytes(100))
    source = Remote(tmp_path / "junk")
    with pytest.raises(tolpack.FormatError):
        Container.read_from(source)
    assert source.is_closed
