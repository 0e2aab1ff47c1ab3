"""Rows as tensors, for `tolpack.torch`.

A lookup gives a function from a layer to its rows, because rows that have a basis are multiplied by
it layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.pack import Pack
from tolpack.reading.edited_rows import EditedIds
from tolpack.reading.lookup import LayerSelection, check_ids
from tolpack.reading.row_decoder import RowDecoder, StoredValueDecoder, TableDecoder
from tolpack.runtime.array_types import Bytes, Floats, Ints
from tolpack.runtime.buffers import Buffers
from tolpack.torch.device_decoding import check_scales, expand

# A layer's rows, (ids, hidden).
Layer = Callable[[int], torch.Tensor]
# Stored values of ids in a dtype, and, on a GPU, when they are ready.
Stored = Callable[[Ints, torch.dtype], tuple[torch.Tensor, torch.cuda.Event | None]]
# Memory of rows that nobody uses any more, kept for the next ones.
_KEPT_BYTES = 64 << 20
# Codecs without a scale or a step.
_FLOATS = {"f32", "f16", "bf16"}
_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


def row_source(
    pack: Pack, dtype: torch.dtype, device: torch.device, *, hot_rows: int, on_device: bool
) -> Callable[[Ints], Layer]:
    """Return what gives rows of distinct ids, `hot_rows` of them without reading the pack."""
    source: Callable[[Ints], Layer]
    if not pack.decoder.has_basis and not on_device and len(set(pack.widths)) == 1:
        source = HostRows(pack, dtype, device)
    else:
        stored = DeviceRecords(pack, device) if on_device else HostCoefficients(pack, device)
        source = Products(pack, dtype, device, stored)
    return HotRows(pack, hot_rows, source) if hot_rows else source


def find_edited(pack: Pack, ids: Ints) -> EditedIds | None:
    """Return which of `ids`, that a lookup has checked, are edited; ``None`` if none is."""
    return None if pack.edits is None else pack.edits.find(ids)


class StackedRows:
    """Rows of all layers in one tensor; a `Layer`.

    Parameters
    ----------
    rows : torch.Tensor
        (ids, layers, width).
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows

    def __call__(self, layer: int) -> torch.Tensor:
        """Return one layer's rows, a view."""
        return self._rows.select(1, layer)

    def clone(self) -> StackedRows:
        """Return a copy."""
        return StackedRows(self._rows.clone())

    def row(self, number: int) -> StackedRows:
        """Return one id's rows alone, a view."""
        return StackedRows(self._rows[number : number + 1])

    def cut(
        self, shape: torch.Size, inverse: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Return all layers' rows as views, ``(*shape, width)`` each.

        Parameters
        ----------
        shape : torch.Size
            Of the ids.
        inverse : torch.Tensor, optional
            The row of each of them, (ids,); default: they are in order.
        """
        rows = self._rows if inverse is None else self._rows.index_select(0, inverse)
        return rows.view(*shape, *rows.shape[1:]).unbind(-2)


class HotRows:
    """Rows of the most frequent tokens, which stay on the device; others come from `source`."""

    def __init__(self, pack: Pack, count: int, source: Callable[[Ints], Layer]) -> None:
        self._vocab_size, self._source = pack.vocab_size, source
        # Ascending, to be searched: a place for every id of the vocabulary might be gigabytes.
        self._tokens = np.sort(pack.most_frequent(count))
        layer = source(self._tokens)
        self._stacked = layer.clone() if isinstance(layer, StackedRows) else None
        held = self._stacked or layer
        rows = [held(n) for n in range(pack.num_layers)]
        self._rows = rows if self._stacked else [one.clone() for one in rows]

    def __call__(self, ids: Ints) -> Layer:
        """Return the rows of distinct `ids`."""
        places = self._tokens.searchsorted(check_ids(ids, self._vocab_size))
        is_cold = self._tokens.take(places, mode="clip") != ids
        if len(ids) == 1 and not is_cold[0]:  # a view
            one = int(places[0])
            if self._stacked:
                return self._stacked.row(one)
            return lambda layer: self._rows[layer][one : one + 1]
        cold = np.flatnonzero(is_cold)
        if len(cold) == len(ids):
            return self._source(ids)
        return self._joined(places, cold, self._source(ids[cold]) if len(cold) else None)

    def _joined(self, places: Ints, cold: Ints, rest: Layer | None) -> Layer:
        """Return the rows at `places`, and `rest` where those are `cold`."""
        places[cold] = 0
        device = self._rows[0].device
        held, others = torch.from_numpy(places).to(device), torch.from_numpy(cold).to(device)

        def rows(layer: int) -> torch.Tensor:
            found = self._rows[layer][held]
            return found if rest is None else found.index_copy_(0, others, rest(layer))

        return rows


class FloatDecoder:
    """Decodes records of floating-point numbers, of which no layer is dropped, to rows.

    A `tolpack.reading.record_reader.RecordSink`. There are no compiled loops for them, and torch
    converts them ten times faster than numpy.

    Parameters
    ----------
    decoder : TableDecoder
        Of a table that `fits`.
    out : torch.Tensor
        (any, layers, width) of float32, float16 or bfloat16, contiguous.
    """

    def __init__(self, decoder: TableDecoder, out: torch.Tensor) -> None:
        self._decoder, self._out = decoder, out.flatten(1)

    @staticmethod
    def fits(decoder: TableDecoder) -> bool:
        """Whether all records are such numbers, and rows are these as they are."""
        runs = [run for layout in decoder.layouts.values() for run in layout.runs]
        return decoder.plain and all(run.part.codec in _FLOATS for run in runs)

    def __call__(self, encoding: int, records: Bytes, places: Ints) -> None:
        """Decode `records` to ``out[places]``."""
        values = expand(torch.from_numpy(records.copy()), self._decoder.layouts[encoding])
        if len(places) == 1:
            self._out[int(places[0])].copy_(values[0])
        else:
            self._out.index_copy_(0, torch.from_numpy(places), values.to(self._out.dtype))


class HostRows:
    """Rows that need no product, decoded on the host into the dtype that is wanted."""

    def __init__(self, pack: Pack, dtype: torch.dtype, device: torch.device) -> None:
        self._pack, self._dtype, self._device = pack, dtype, device
        self._buffers = Buffers(_KEPT_BYTES)
        layers = range(pack.num_layers)
        self._layers = LayerSelection.of(layers, pack.container.table.fields)
        self._of_floats = not self._layers.zeros and FloatDecoder.fits(pack.decoder)

    def __call__(self, ids: Ints) -> Layer:
        """Return the rows of distinct `ids`: views of one array."""
        pack, layers = self._pack, self._layers
        shape = (len(ids), layers.count, layers.width)
        out = self._buffers.array(shape, _NUMPY[self._dtype])
        rows = torch.from_numpy(out)
        rows = rows.view(torch.bfloat16) if self._dtype == torch.bfloat16 else rows
        if self._of_floats:
            pack.gather(ids, FloatDecoder(pack.decoder, rows))
        else:
            pack.gather(ids, RowDecoder(pack.decoder, out, layers))
        edited = find_edited(pack, ids)
        if edited is not None:
            edited.read(edited.positions, lambda decoder: RowDecoder(decoder, out, layers))
        layers.fill_undecoded(out)
        return StackedRows(rows if self._device.type == "cpu" else rows.to(self._device))


class HostCoefficients:
    """Stored values of all kept layers, decoded on the host."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self._pack, self._device = pack, device

    def __call__(
        self, ids: Ints, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Return the stored values of distinct `ids`; see `Stored`."""
        decoder = self._pack.decoder
        out = np.empty((len(ids), decoder.stored_values), _NUMPY[dtype])
        self._pack.gather(ids, StoredValueDecoder(decoder, out))
        values = torch.from_numpy(out)
        values = values.view(torch.bfloat16) if dtype == torch.bfloat16 else values
        return values.to(self._device), None


class DeviceRecords:
    """Stored values of all kept layers, sent as they are and expanded on the device.

    On a GPU the copy goes from pinned memory, in a stream of its own.
    """

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self._pack, self._device = pack, device
        self._stream = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(
        self, ids: Ints, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Return the stored values of distinct `ids`; see `Stored`."""
        decoder, parts = self._pack.decoder, list[tuple[int, Bytes, Ints]]()
        self._pack.gather(ids, lambda *part: parts.append(part))
        for encoding, records, _ in parts:
            check_scales(records, decoder.layouts[encoding])
        if self._stream is None:
            return self._expanded(parts, len(ids), dtype), None
        with torch.cuda.stream(self._stream):
            return self._expanded(parts, len(ids), dtype), self._stream.record_event()

    def _expanded(
        self, parts: list[tuple[int, Bytes, Ints]], count: int, dtype: torch.dtype
    ) -> torch.Tensor:
        decoder = self._pack.decoder
        out = torch.empty(count, decoder.stored_values, dtype=dtype, device=self._device)
        for encoding in {part[0] for part in parts}:
            own = [part for part in parts if part[0] == encoding]
            layout = decoder.layouts[encoding]
            # Some are followed by the padding of their block.
            cut = [part[1][:, : layout.record_bytes] for part in own]
            records = self._send(np.concatenate(cut))
            places = self._send(np.concatenate([part[2] for part in own]))
            out.index_copy_(0, places, expand(records, layout).to(dtype))
        return out

    def _send(self, array: NDArray[Any]) -> torch.Tensor:
        host = torch.from_numpy(array)
        if self._stream is None:
            return host.to(self._device)
        return host.pin_memory().to(self._device, non_blocking=True)


class Products:
    """Rows as products of stored values with bases that stay on the device."""

    def __init__(
        self,
        pack: Pack,
        dtype: torch.dtype,
        device: torch.device,
        stored: Stored,
    ) -> None:
        self._pack, self._dtype, self._device, self._stored = pack, dtype, device, stored
        # float16 overflows within a product, and no CPU multiplies it fast; what is not multiplied
        # is rounded once.
        exact = dtype == torch.float16 or not pack.decoder.has_basis
        self._compute = torch.float32 if exact else dtype
        self._numbers = {layer: n for n, layer in enumerate(pack.kept_layers)}
        self._weights: dict[int, tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def __call__(self, ids: Ints) -> Layer:
        """Return the rows of distinct `ids`."""
        values, ready = self._stored(ids, self._compute)
        edited = self._edited_rows(ids)

        def rows(layer: int) -> torch.Tensor:
            if ready is not None:  # the stream that asks, which need not be that of a prefetch
                current = torch.cuda.current_stream(self._device)
                current.wait_event(ready)
                values.record_stream(current)
            found = self._rows(layer, values)
            return found if edited is None else self._put_edited(found, layer, *edited)

        return rows

    def _edited_rows(self, ids: Ints) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return where edited tokens stand among `ids`, and their rows, on the device; ``None`` if
        there are none.
        """
        edited = find_edited(self._pack, ids)
        if edited is None:
            return None
        positions, rows = map(torch.from_numpy, (edited.positions, edited.values()))
        return positions.to(self._device), rows.to(self._device, self._dtype)

    def _put_edited(
        self, rows: torch.Tensor, layer: int, positions: torch.Tensor, edited: torch.Tensor
    ) -> torch.Tensor:
        """Put the rows of edited tokens into a layer's; a dropped layer stays as it is."""
        fields, number = self._pack.fields, self._numbers.get(layer)
        if number is None:
            return rows
        begin = sum(fields[kept].width for kept in self._pack.kept_layers[:number])
        return rows.index_copy_(0, positions, edited[:, begin : begin + fields[layer].width])

    def _rows(self, layer: int, values: torch.Tensor) -> torch.Tensor:
        number = self._numbers.get(layer)
        if number is None:
            width = self._pack.widths[layer]
            return torch.zeros(len(values), width, dtype=self._dtype, device=self._device)
        own = values[:, self._pack.decoder.span(number)]
        basis, mean = self._weights_of(number)
        if basis is None:
            multiplier = self._pack.decoder.multiplier
            rows = own if mean is None else own + mean
            rows = rows * multiplier if multiplier != 1.0 else rows
        else:
            rows = own @ basis if mean is None else torch.addmm(mean, own, basis)
        return rows.to(self._dtype)

    def _weights_of(self, number: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Basis and mean of a kept field on the device; with a basis, times the multiplier."""
        if number not in self._weights:
            decoder = self._pack.decoder
            basis, mean = decoder.basis(number), decoder.mean(number)
            factor = 1.0 if basis is None else decoder.multiplier
            self._weights[number] = self._weight(basis, factor), self._weight(mean, factor)
        return self._weights[number]

    def _weight(self, array: Floats | None, factor: float) -> torch.Tensor | None:
        if array is None:
            return None
        with torch.inference_mode(False):
            scaled = torch.from_numpy(array * np.float32(factor))
            return scaled.to(self._device, self._compute)
