"""Mean and principal components of a layer's rows: what truncated bases are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tolpack.compress.low_rank import spectrum
from tolpack.runtime.array_types import Doubles, Floats
from tolpack.runtime.scratch import Scratch, SpilledArray


@dataclass(frozen=True, slots=True)
class PrincipalComponents:
    """One layer's weighted mean, float64 (hidden,), and the spectrum around it: eigenvalues,
    float64 (hidden,) descending, and eigenvectors, which may have to be read back.
    """

    mean: Doubles
    values: Doubles
    spilled_vectors: SpilledArray

    @classmethod
    def of(cls, second_moment: Doubles, mean: Doubles, scratch: Scratch) -> PrincipalComponents:
        """Decompose a layer's moments, as `tolpack.compress.second_moments` gives them."""
        found = spectrum(second_moment, mean)
        return cls(mean, found.values, scratch.spill(found.vectors.astype(np.float32)))

    @property
    def vectors(self) -> Floats:
        """Eigenvectors in columns, float32 (hidden, hidden)."""
        return self.spilled_vectors.load()

    def basis(self, rank: int) -> NDArray[np.float16]:
        """Return the leading eigenvectors as they are stored, float16 (rank, hidden)."""
        return self.vectors[:, :rank].T.astype(np.float16)
