"""What is wrong with a build's settings and files, said before anything is read or worked out.

Shapes of the tables and first bytes of the files are enough for it. Checking the input and
calibrating may take hours.
"""

from __future__ import annotations

from collections.abc import Sequence

from tolpack.calibration.calibrate import CalibrationInputs
from tolpack.compress.settings import BuildSettings, dropped_fields
from tolpack.model.text import check_calibration_text
from tolpack.sources.arrays.npy import check_counts
from tolpack.sources.protocol import TableSource


def check_request(
    sources: Sequence[TableSource], settings: BuildSettings, inputs: CalibrationInputs
) -> None:
    """Hold settings against the shapes of `sources`, and look at the first bytes of `inputs`.

    Raises
    ------
    ConfigError
        A setting does not fit a table, or a file is missing or of another kind.
    """
    for source in sources:
        layers = [field.layer for field in source.fields]
        dropped_fields(settings.drop.layers, layers)
        widths = [field.width for field in source.fields]
        settings.ranks.for_layers(len(layers), min(*widths, source.rows))
    if inputs.text is not None:
        check_calibration_text(inputs.text, inputs.tokenizer)
    if inputs.frequencies is not None:
        for source in sources:
            check_counts(inputs.frequencies, source.rows, source.name)
