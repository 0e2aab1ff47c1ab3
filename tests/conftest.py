"""Fixtures and settings that all tests share; torch is imported only by the tests that need it."""

import os

import pytest
from hypothesis import settings

# Threads only cost on models this small; what must not depend on them sets their number itself.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Every build measures for itself, and leaves nothing behind; a test of the cache names a folder.
os.environ["TOLPACK_CACHE"] = "off"

# No test fails on a time, and a run that passed once passes again.
settings.register_profile("tolpack", deadline=None, derandomize=True, database=None)
settings.load_profile("tolpack")


@pytest.fixture(scope="session", autouse=True)
def _bounds_checked():
    """Run compiled loops wherever they may be, if they are to be run with checks of bounds."""
    if os.environ.get("NUMBA_BOUNDSCHECK") == "1":
        from tolpack.codecs import kernels

        assert kernels.load() is not None


@pytest.fixture(scope="session")
def memoryllm(tmp_path_factory):
    """A tiny MemoryLLM as a ``.pt`` with its config: for reading only."""
    import models

    return models.save_model(tmp_path_factory.mktemp("memoryllm"))


@pytest.fixture(scope="session")
def token_ids(tmp_path_factory):
    """A text of 401 token ids for the tiny models, as ``.npy``: for reading only."""
    import models
    import numpy as np

    path = tmp_path_factory.mktemp("text") / "ids.npy"
    np.save(path, models.zipf_ids(401, 97))
    return path


@pytest.fixture(scope="session")
def samples(tmp_path_factory):
    """A written pack of every recipe, by its name: for reading only."""
    from packs import RECIPES, write

    folder = tmp_path_factory.mktemp("packs")
    return {name: write(folder / name, recipe) for name, recipe in RECIPES.items()}
