"""``tolpack demo``: packs of a small trained model that ships with tolpack, built and evaluated.

``examples/train_demo_model.py`` makes the model (``model/``) from the documentation in Python's
standard library. A part of it is held out for the evaluation here.
"""

from __future__ import annotations

from pathlib import Path

from tolpack.compress.build import build
from tolpack.errors import FileAccessError
from tolpack.evaluation.evaluator import evaluate
from tolpack.evaluation.scores import Evaluation
from tolpack.runtime.progress import Reporter

MODEL = Path(__file__).parent / "model"
SETTINGS: tuple[tuple[str, str, int | str], ...] = (
    ("16-bit", "none", 16),
    ("8-bit", "none", 8),
    ("4-bit", "none", 4),
    ("rank-auto-4-bit", "auto", 4),
    ("rank-50%-4-bit", "50%", 4),
    ("auto", "auto", "auto"),
)


def run_demo(folder: Path, reporter: Reporter | None = None) -> Evaluation:
    """Build a pack at each of `SETTINGS` in `folder` and evaluate all of them.

    Parameters
    ----------
    folder : Path
        For the packs; made if it does not exist.
    reporter : Reporter, optional
        Receives progress.

    Raises
    ------
    FileAccessError
        The folder cannot be made, or a pack cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileAccessError(f"cannot make folder {folder}: {error.strerror}") from error
    paths = []
    for name, rank, bits in SETTINGS:
        path = folder / f"{name}.tolpack"
        build(MODEL, path, rank=rank, bits=bits, force=True)
        paths.append(path)
    return evaluate(MODEL, paths, MODEL / "heldout.txt", reporter=reporter)
