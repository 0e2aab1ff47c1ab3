"""The array sections of a candidate's pack, and what the header says of its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from tolpack.codecs.encodings import CoderSettings
from tolpack.compress.entropy.layer_basis import CodedBasis
from tolpack.compress.entropy.table_coding import TableCoding
from tolpack.compress.header_size import planned_basis
from tolpack.compress.plan import PlanInputs, PlannedArray, planned_array
from tolpack.container.header import Field, Section, Table
from tolpack.runtime.array_types import Floats
from tolpack.runtime.scratch import in_memory


@dataclass(frozen=True, slots=True)
class CodedSections:
    """Sections in the order of the file: by layer a basis and a mean, then models, classes of rows
    and of bases, and what rows are found by.

    ``bases`` and ``means``, by kept layer: empty without a basis, and without a mean.
    """

    inputs: PlanInputs
    bases: Mapping[int, CodedBasis]
    coding: TableCoding
    means: Mapping[int, Floats]

    @property
    def table(self) -> Table:
        """What the header says of the table, without chunks."""
        fields: list[Field] = []
        numbers = {place: number for number, place in enumerate(self._of_layers)}
        for layer in range(len(self.inputs.source.fields)):
            field = self.inputs.field(layer)
            if layer in self.bases:
                rank, basis = len(self.bases[layer].codes), numbers["coded_basis", layer]
                field = replace(field, rank=rank, basis=basis, mean=numbers.get(("mean", layer)))
            fields.append(field)
        return self.inputs.table(fields, [section.kind for section in self.planned()])

    def planned(self) -> list[Section]:
        """Return all of them as they will be, of predicted sizes."""
        width = self.inputs.width
        found = [
            planned_array("mean", "float32", (width,), 4) if kind == "mean"
            else planned_basis(
                self.bases[layer].codes.shape, self._basis_settings(layer),
                self.coding.basis_bytes(layer, self.bases[layer]),
            )
            for kind, layer in self._of_layers
        ]  # fmt: skip
        found += [
            planned_array(kind, str(array.dtype), array.shape, array.itemsize)
            for kind, array in self._of_coding()
        ]
        return found + self.inputs.row_sections(self._chunk_rows)

    def arrays(self) -> tuple[PlannedArray, ...]:
        """Return all of them."""
        found = []
        for kind, layer in self._of_layers:
            if kind == "mean":
                found.append(PlannedArray("mean", in_memory(self.means[layer])))
                continue
            basis = self.bases[layer]
            stored = self.inputs.workspace.scratch.spill(self.coding.coded_basis(layer, basis))
            coder, shape = self._basis_settings(layer), basis.codes.shape
            found.append(PlannedArray("coded_basis", stored, coder, shape))
        found += [PlannedArray(kind, in_memory(array)) for kind, array in self._of_coding()]
        return (*found, *self.inputs.row_arrays(self._chunk_rows))

    def chunk_settings(self, chunk: int) -> CoderSettings:
        """Return by what the rows of a chunk are coded."""
        models = len(self._of_layers)
        return self.coding.chunk_settings(chunk, models, models + 1)

    def _basis_settings(self, layer: int) -> CoderSettings:
        models = len(self._of_layers)
        return self.coding.basis_settings(layer, models, models + 2)

    @property
    def _chunk_rows(self) -> list[int]:
        return [span.rows for span in self.coding.spans]

    @property
    def _of_layers(self) -> list[tuple[str, int]]:
        """Kinds and layers of the first sections."""
        return [
            (kind, layer)
            for layer in self.bases
            for kind, given in (("coded_basis", self.bases), ("mean", self.means))
            if layer in given
        ]

    def _of_coding(self) -> list[tuple[str, NDArray[Any]]]:
        """Kinds of the sections behind them, and their arrays."""
        coding = self.coding
        found: list[tuple[str, NDArray[Any]]]
        found = [("code_models", coding.models), ("code_classes", coding.rows.classes)]
        if self.bases:
            found.append(("code_classes", coding.basis_classes))
        return found
