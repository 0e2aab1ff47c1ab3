"""`ToLMemory`: a pack as the module that inference code mounts in place of its memory FFNs.

``memory(layer, token_ids)`` is called once per layer with the same ids; the rows of all layers are
fetched together at the first of these calls, because they lie in one extent of the file. Without a
basis they are decoded at once; with one, what is decoded is coefficients, and each layer's call
multiplies them by its basis, which stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tolpack.buffers import Buffers
from tolpack.codecs.on_device import check_scales, expand
from tolpack.codecs.values import Bytes, Floats
from tolpack.errors import ConfigError, TokenIdError
from tolpack.pack import Pack
from tolpack.pool import Pool
from tolpack.reading.decoding import RowSink, StoredSink
from tolpack.reading.lookup import LayerChoice, check_ids

Ints = NDArray[np.int64]
# Memory of rows that nobody uses any more, kept for the next ones.
_KEPT_BYTES = 64 << 20
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class ToLMemory(torch.nn.Module):
    """Memory outputs looked up in a pack.

    Parameters
    ----------
    pack : Pack
        An open pack; it stays open for as long as the module is used.
    dtype : torch.dtype
        Of the outputs: float32, bfloat16 or float16. With bfloat16 and a basis, coefficients and
        bases are rounded to bfloat16 before they are multiplied, as the FFN's weights would be.
    device : str or torch.device
        Where the outputs go.
    hot_rows : int
        Rows of the most frequent tokens that stay on the device, as the pack orders them.
    expand : str
        Where records are decoded: ``"host"``, ``"device"``, which sends 4 to 16 bits a value and
        not 16 to 32, or ``"auto"``: on the device, unless it is the CPU.
    """

    def __init__(
        self,
        pack: Pack,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        *,
        hot_rows: int = 0,
        expand: str = "auto",
    ) -> None:
        super().__init__()
        if dtype not in _DTYPES:
            raise ConfigError(f"dtype is {dtype}, expected float32, bfloat16 or float16")
        if expand not in ("auto", "host", "device"):
            raise ConfigError(f"expand is {expand!r}, expected auto, host or device")
        if type(hot_rows) is not int or not 0 <= hot_rows <= pack.vocab_size:
            raise ConfigError(f"hot_rows is {hot_rows!r}, expected 0 … {pack.vocab_size}")
        self.pack = pack
        self.dtype = dtype
        self.device = torch.device(device)
        self._options: dict[str, Any] = {"hot_rows": hot_rows, "expand": expand}
        on_device = expand == "device" or (expand == "auto" and self.device.type != "cpu")
        self._source = _source(pack, dtype, self.device, on_device=on_device)
        self._ahead = Pool(1, "memory")
        self._coming: tuple[Ints, Future[_Step]] | None = None
        # Ids and their rows, replaced together: several threads may ask for different ones.
        self._last: tuple[torch.Tensor, _Step] | None = None
        self._hot: _Hot | None = None
        if hot_rows:
            with torch.inference_mode(False):
                self._hot = _hot(pack, hot_rows, self._source)

    def forward(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Return layer `layer`'s memory output for `token_ids`.

        Parameters
        ----------
        layer : int
            Layer number.
        token_ids : torch.Tensor
            Integers of any shape, on any device.

        Returns
        -------
        torch.Tensor
            ``(*token_ids.shape, hidden_size)``; dropped layers give zeros. It may be a view of what
            later calls for the same ids return: do not write to it.

        Raises
        ------
        ConfigError
            No such layer.
        TokenIdError, FormatError, FileAccessError
            As `Pack.rows`.
        """
        if type(layer) is not int or not 0 <= layer < self.pack.num_layers:
            raise ConfigError(f"layer {layer} is out of range 0 … {self.pack.num_layers - 1}")
        rows = self._fetch(token_ids).layer(layer)
        return rows.view(*token_ids.shape, self.pack.hidden_size)

    def prefetch(self, token_ids: torch.Tensor) -> None:
        """Begin to fetch the rows of the next step's ids, in another thread, and return at once.

        A later call with these ids waits for them, and raises what went wrong.
        """
        ids = _flat(token_ids)
        self._coming = (ids, self._ahead.submit(self._load, ids))

    def __deepcopy__(self, memo: dict[int, Any]) -> ToLMemory:
        """Return a module of its own on the same open pack."""
        return ToLMemory(self.pack, self.dtype, self.device, **self._options)

    def _fetch(self, token_ids: torch.Tensor) -> _Step:
        last = self._last
        if last is not None and _same(last[0], token_ids):
            return last[1]
        del last
        self._last = None  # its memory may serve the new ones
        ids, coming, self._coming = _flat(token_ids), self._coming, None
        if coming is not None and np.array_equal(coming[0], ids):
            step = coming[1].result()
        else:
            step = self._load(ids)
        self._last = token_ids.clone(), step
        return step

    def _load(self, ids: Ints) -> _Step:
        """Rows of `ids`: of the distinct ones, if some occur several times."""
        with torch.inference_mode(False):  # rows may be used where gradients are recorded
            distinct, inverse = np.unique(ids, return_inverse=True)
            if len(distinct) == len(ids):
                return self._load_distinct(ids)
            step = self._load_distinct(distinct)
            step.inverse = torch.from_numpy(inverse.reshape(-1)).to(self.device)
            return step

    def _load_distinct(self, ids: Ints) -> _Step:
        if self._hot is None:
            return _Step(self._source(ids))
        numbers = self._hot.numbers(ids)
        cold = np.flatnonzero(numbers < 0)
        layer = self._source(ids[cold]) if len(cold) else None
        return _Step(self._hot.joined(numbers, cold, layer))


Layer = Callable[[int], torch.Tensor]
# Stored values of ids in a dtype, and, on a GPU, when they are ready.
Stored = Callable[[Ints, torch.dtype], tuple[torch.Tensor, torch.cuda.Event | None]]


@dataclass(slots=True)
class _Step:
    """Rows of all layers for some ids.

    ``rows``: layer → (distinct, hidden); ``inverse``: each id's number among them, unless it is its
    own.
    """

    rows: Layer
    inverse: torch.Tensor | None = None

    def layer(self, layer: int) -> torch.Tensor:
        """Return one layer's rows, (ids, hidden)."""
        rows = self.rows(layer)
        return rows if self.inverse is None else rows[self.inverse]


@dataclass(frozen=True, slots=True)
class _Hot:
    """Rows that stay on the device.

    ``number`` int64 (vocab,): the row of each token, or -1; ``rows`` (hot, layers, hidden).
    """

    number: Ints
    rows: torch.Tensor

    def numbers(self, ids: Ints) -> Ints:
        """Return the row of each id, or -1."""
        return self.number[check_ids(ids, len(self.number))]

    def joined(self, numbers: Ints, cold: Ints, rest: Layer | None) -> Layer:
        """Return rows of which those numbered ``cold`` come from `rest`."""
        if rest is None and len(numbers) == 1:  # a view
            one = int(numbers[0])
            return lambda layer: self.rows[one : one + 1, layer]
        held = torch.from_numpy(np.maximum(numbers, 0)).to(self.rows.device)
        others = torch.from_numpy(cold).to(self.rows.device)

        def rows(layer: int) -> torch.Tensor:
            found = self.rows[held, layer]
            return found if rest is None else found.index_copy_(0, others, rest(layer))

        return rows


def _hot(pack: Pack, count: int, source: Callable[[Ints], Layer]) -> _Hot:
    """Load the rows of the `count` most frequent tokens."""
    tokens = pack.most_frequent(count)
    number = np.full(pack.vocab_size, -1, np.int64)
    number[tokens] = np.arange(count)
    layer = source(tokens)
    rows = torch.stack([layer(n) for n in range(pack.num_layers)], dim=1)
    return _Hot(number, rows)


def _source(
    pack: Pack, dtype: torch.dtype, device: torch.device, *, on_device: bool
) -> Callable[[Ints], Layer]:
    """Return what gives rows of distinct ids."""
    if not pack.decoder.has_basis and not on_device:
        return _HostRows(pack, dtype, device)
    stored = _DeviceRecords(pack, device) if on_device else _HostCoefficients(pack, device)
    return _Products(pack, dtype, device, stored)


class _HostRows:
    """Rows that need no product, decoded on the host into the dtype that is wanted."""

    def __init__(self, pack: Pack, dtype: torch.dtype, device: torch.device) -> None:
        self._pack, self._dtype, self._device = pack, dtype, device
        self._buffers = Buffers(_KEPT_BYTES)
        layers = range(pack.num_layers)
        self._layers = LayerChoice.of(layers, pack.kept_layers, pack.hidden_size)

    def __call__(self, ids: Ints) -> Layer:
        pack, numpy_dtype = self._pack, _NUMPY[self._dtype]
        shape = (len(ids), pack.num_layers, pack.hidden_size)
        out = self._buffers.array(shape, numpy_dtype)
        pack.gather(ids, RowSink(pack.decoder, out, self._layers))
        self._layers.complete(out)
        rows = torch.from_numpy(out)
        rows = rows.view(torch.bfloat16) if self._dtype == torch.bfloat16 else rows
        rows = rows.to(self._device)
        return lambda layer: rows[:, layer]


class _HostCoefficients:
    """Stored values of all kept layers, decoded on the host."""

    def __init__(self, pack: Pack, device: torch.device) -> None:
        self._pack, self._device = pack, device

    def __call__(
        self, ids: Ints, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        decoder = self._pack.decoder
        out = np.empty((len(ids), decoder.stored_values), _NUMPY[dtype])
        self._pack.gather(ids, StoredSink(decoder, out))
        values = torch.from_numpy(out)
        values = values.view(torch.bfloat16) if dtype == torch.bfloat16 else values
        return values.to(self._device), None


class _DeviceRecords:
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


class _Products:
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
        values, ready = self._stored(ids, self._compute)

        def rows(layer: int) -> torch.Tensor:
            if ready is not None:  # the stream that asks, which need not be that of a prefetch
                current = torch.cuda.current_stream(self._device)
                current.wait_event(ready)
                values.record_stream(current)
            return self._rows(layer, values)

        return rows

    def _rows(self, layer: int, values: torch.Tensor) -> torch.Tensor:
        number = self._numbers.get(layer)
        if number is None:
            hidden = self._pack.hidden_size
            return torch.zeros(len(values), hidden, dtype=self._dtype, device=self._device)
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


_NUMPY = {torch.float32: np.float32, torch.float16: np.float16, torch.bfloat16: np.uint16}


def _same(known: torch.Tensor, ids: torch.Tensor) -> bool:
    return known.dtype == ids.dtype and known.device == ids.device and torch.equal(known, ids)


def _flat(token_ids: torch.Tensor) -> Ints:
    """Ids as int64 (n,) on the host."""
    kind = token_ids.dtype
    if kind.is_floating_point or kind.is_complex or kind == torch.bool:
        raise TokenIdError(f"token ids are {token_ids.dtype}, expected integers")
    return token_ids.reshape(-1).cpu().numpy().astype(np.int64)
