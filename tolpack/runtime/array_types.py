"""Names of array types: what a docstring's shape is an array of; and of bytes to be written."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Bytes on their way to a file.
Buffer = bytes | memoryview
