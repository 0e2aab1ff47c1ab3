"""`ToLMemory`: a pack as the module that inference code mounts in place of its memory FFNs.

``memory(layer, token_ids)`` is called once per layer with the same ids; the rows of all layers are
fetched together at the first of these calls, because they lie in one extent of the file. Without a
basis they are decoded at once, and the other calls return views that were cut then. With one,
coefficients are decoded at once, and each layer's call multiplies them by its basis, which stays on
the device (`tolpack.torch.rows`).

Reading a file cannot be traced, so within `torch.compile` a call is one operator of the graph,
``tolpack::memory_rows``. A compiled graph holds numbers and names but no modules: the operator is
given the module's name.
"""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import torch

from tolpack.errors import ConfigError
from tolpack.pack import Pack
from tolpack.runtime.array_types import Ints
from tolpack.runtime.fork_safety import register_fork_reset
from tolpack.runtime.pool import Pool
from tolpack.torch.pack_module import PackModule, register_operator
from tolpack.torch.rows import row_source
from tolpack.torch.step import FetchedRows, Step, StepIds

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _LastStep:
    """The step that was asked for last, in a place that `torch.nn.Module` does not look at: its
    attributes take a microsecond to set.
    """

    __slots__ = ("step",)

    def __init__(self) -> None:
        # Ids and their rows are replaced together: several threads may ask for different ones.
        self.step: Step | None = None


class ToLMemory(PackModule):
    """Memory outputs looked up in a pack.

    Within `torch.compile` it is an operator that breaks no graph. A deep copy reads the same open
    pack; an unpickled one, as in a spawned process, opens the pack again.

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

    Raises
    ------
    ConfigError
        A setting is none of those above.
    """

    _OWN = frozenset({"_source", "_ahead", "_coming", "_last", "_name"})

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
        self._hot_rows = hot_rows
        self._on_device = expand == "device" or (expand == "auto" and self.device.type != "cpu")
        self._begin()

    def _begin(self) -> None:
        """Make what belongs to this module in this process alone."""
        widths = self.pack.widths
        self._widths, self._num_layers = widths, len(widths)
        self._common_width = widths[0] if len(set(widths)) == 1 else None
        with torch.inference_mode(False):
            self._source = row_source(
                self.pack, self.dtype, self.device,
                hot_rows=self._hot_rows, on_device=self._on_device,
            )  # fmt: skip
        self._ahead = Pool(1, "memory")
        self._coming: tuple[Ints, Future[FetchedRows]] | None = None
        self._last = _LastStep()
        self._name = self._new_name()
        register_fork_reset(self)

    def forward(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        """Return layer `layer`'s memory output for `token_ids`.

        Parameters
        ----------
        layer : int
            Number of a field of the pack, as in `Pack.rows`: the model's layer, unless
            ``pack.fields`` says otherwise.
        token_ids : torch.Tensor
            Integers of any shape, on any device.

        Returns
        -------
        torch.Tensor
            ``(*token_ids.shape, width of the layer)``; dropped layers give zeros. It may be a view
            of what later calls for the same ids return: do not write to it. In compiled code it is
            a copy.

        Raises
        ------
        ConfigError
            No such layer.
        TokenIdError, FormatError, FileAccessError
            As `Pack.rows`.
        """
        if torch.compiler.is_compiling():
            rows: torch.Tensor = torch.ops.tolpack.memory_rows(
                token_ids, self._name, layer, self._width(layer), self.dtype, self.device
            )
            return rows
        return self._rows(layer, token_ids)

    def all_layers(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return every layer's memory output for `token_ids`.

        For models that fetch all layers at the beginning of a forward pass: it takes less time than
        a call for each layer. On a GPU the host waits for the ids once, and not at every call.

        Parameters
        ----------
        token_ids : torch.Tensor
            As for `forward`.

        Returns
        -------
        tuple of torch.Tensor
            By layer, as `forward` returns them.

        Raises
        ------
        TokenIdError, FormatError, FileAccessError
            As `Pack.rows`.
        """
        if torch.compiler.is_compiling():
            return tuple(self.forward(layer, token_ids) for layer in range(self._num_layers))
        step = self._last.step
        if step is None or not step.ids.are_in(token_ids):
            step = self._fetch(token_ids)
        layers = enumerate(step.layers)
        return tuple(step.make(n) if rows is None else rows for n, rows in layers)

    def prefetch(self, token_ids: torch.Tensor) -> None:
        """Begin to fetch the rows of the next step's ids, in another thread, and return at once.

        A later call with these ids waits for them, and raises what went wrong. Call it outside of
        compiled code, which leaves it out.

        Parameters
        ----------
        token_ids : torch.Tensor
            As for `forward`.
        """
        if torch.compiler.is_compiling():
            return
        ids = StepIds(token_ids).flat
        self._coming = (ids, self._ahead.submit(self._load, ids))

    def reset_after_fork(self) -> None:
        """See `tolpack.runtime.fork_safety.ForkReset`: the thread that fetches ahead is gone."""
        self._coming = None

    def _rows(self, layer: int, token_ids: torch.Tensor) -> torch.Tensor:
        if type(layer) is not int or not 0 <= layer < self._num_layers:
            raise ConfigError(f"layer {layer} is out of range 0 … {self._num_layers - 1}")
        step = self._last.step
        if step is None or not step.ids.are_in(token_ids):
            step = self._fetch(token_ids)
        rows = step.layers[layer]
        return step.make(layer) if rows is None else rows

    def _width(self, layer: int) -> int:
        """Values of a layer; `layer` is looked at only if it must be, so one graph serves all."""
        return self._common_width or self._widths[layer]

    def _fetch(self, token_ids: torch.Tensor) -> Step:
        """Make the step of other ids the last one."""
        self._last.step = None  # its memory may serve the new one
        ids, coming = StepIds(token_ids), self._coming
        if coming is not None:
            self._coming = None
        if coming is not None and np.array_equal(coming[0], ids.flat):
            fetched = coming[1].result()
        else:
            fetched = self._load(ids.flat)
        with torch.inference_mode(False):
            step = Step(ids, fetched, self._widths, keeps=self.device.type == "cpu")
        self._last.step = step
        return step

    def _load(self, ids: Ints) -> FetchedRows:
        """Rows of `ids`: of the distinct ones, if some occur several times."""
        with torch.inference_mode(False):  # rows may be used where gradients are recorded
            if len(set(ids.tolist())) == len(ids):
                return FetchedRows(self._source(ids))
            distinct, inverse = np.unique(ids, return_inverse=True)
            places = torch.from_numpy(inverse.reshape(-1)).to(self.device)
            return FetchedRows(self._source(distinct), places)


def _memory_rows(
    token_ids: torch.Tensor,
    memory: str,
    layer: int,
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return what the `ToLMemory` of that name does, in memory that is the caller's alone."""
    rows = ToLMemory.named(memory)._rows(layer, token_ids)
    return rows.clone(memory_format=torch.contiguous_format)


def _like_memory_rows(
    token_ids: torch.Tensor,
    memory: str,
    layer: int,
    hidden_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    """Return a tensor of the shape, dtype and device of `_memory_rows`, of any content.

    They follow from the arguments alone, not from the module, because they are all that caches of
    compiled graphs see.
    """
    return token_ids.new_empty((*token_ids.shape, hidden_size), dtype=dtype, device=device)


register_operator(
    "memory_rows",
    "(Tensor token_ids, str memory, SymInt layer, int hidden_size, ScalarType dtype, "
    "Device device) -> Tensor",
    _memory_rows, _like_memory_rows,
)  # fmt: skip
