"""What modules that read a pack share: copies, other processes, operators of compiled graphs."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from copy import deepcopy
from hashlib import sha256
from typing import Any, ClassVar, Self

import torch

from tolpack.errors import ConfigError, TokenIdError
from tolpack.pack import Pack


class PackModule(torch.nn.Module):
    """A module on an open pack.

    A deep copy reads the same open pack; an unpickled module, as in a spawned process, opens the
    pack again.
    """

    pack: Pack
    # Attributes that a copy, or another process, makes again: see `_begin`.
    _OWN: ClassVar[frozenset[str]] = frozenset()

    def _begin(self) -> None:
        """Make what belongs to this module in this process alone."""
        raise NotImplementedError

    def _new_name(self) -> str:
        """Return a name by which compiled graphs find this module: they hold no modules.

        Pack, table and edits are part of it: a graph that was saved must not find the rows of
        others.
        """
        container, edits = self.pack.container, self.pack.edits
        changed = "" if edits is None else f"-{sha256(edits.identity).hexdigest()[:16]}"
        pack = f"{container.preamble.pack_id:016x}-{container.number}{changed}"
        name = f"{pack}-{next(_numbers)}"
        _modules[name] = self
        return name

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the module of that name.

        Raises
        ------
        ConfigError
            It is not in this process.
        """
        found = _modules.get(name)
        if not isinstance(found, cls):
            raise ConfigError(
                f"the {cls.__name__} {name!r} of this compiled code is not in this process: "
                "compile again"
            )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a module of its own on the same open pack."""
        memo[id(self.pack)] = self.pack
        memo[id(self)] = copied = type(self).__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Return the pack and the settings."""
        state = super().__getstate__()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name not in self._OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Begin again with the pack and the settings of `state`."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()


_numbers = itertools.count()
_modules: weakref.WeakValueDictionary[str, PackModule] = weakref.WeakValueDictionary()


def check_integers(token_ids: torch.Tensor) -> None:
    """Raise `TokenIdError` unless ids are integers."""
    dtype = token_ids.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TokenIdError(f"token ids are {dtype}, expected integers")


def register_operator(
    name: str,
    schema: str,
    rows: Callable[..., torch.Tensor],
    like_rows: Callable[..., torch.Tensor],
) -> None:
    """Define the operator ``tolpack::name`` that compiled graphs call.

    Parameters
    ----------
    name : str
        Without the namespace.
    schema : str
        Its arguments and result, as torch writes them.
    rows : callable
        Returns the rows, in memory that is the caller's alone.
    like_rows : callable
        Returns a tensor of the same shape, dtype and device, of any content. They must follow from
        the arguments alone, not from a module, because these are all that caches of compiled graphs
        see.
    """
    # Reading a file cannot be part of a CUDA graph; torch before 2.8 cannot be told.
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    more = {} if unsafe is None else {"tags": (unsafe,)}
    operator = torch.library.custom_op(
        f"tolpack::{name}", rows, mutates_args=(), schema=schema, **more
    )
    operator.register_fake(like_rows)
