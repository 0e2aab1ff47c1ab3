"""The trellis of `tolpack.codecs.ans.trellis` as a search needs it: from where a state is reached.

The codes of a state's set fall into two subsets, one for each parity of the level. Subset ``s``, of
`SUBSET_COUNT`, has the magnitudes that are ``s`` modulo 4; the last one also has zero.
"""

from __future__ import annotations

import numpy as np

from tolpack.codecs.ans.trellis import NEXT

SUBSET_COUNT = 4
# By the state's set and the parity of the level.
SUBSETS = np.array([[0, 2], [3, 1]], np.int64)
# The state before, by the state that an even or an odd level led to.
EVEN, ODD = np.argsort(NEXT[:, 0]), np.argsort(NEXT[:, 1])
# What a state costs that cannot be reached.
FAR = np.float32(1e30)
