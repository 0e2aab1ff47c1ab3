"""Options for opening a checkpoint: its configuration, architecture and key map."""

from __future__ import annotations

from dataclasses import dataclass

from tolpack.errors import ConfigError
from tolpack.sources.checkpoint.config import MODEL_TYPES
from tolpack.sources.checkpoint.key_map import KeyMap, built_in, read_key_map
from tolpack.storage.locations import Location


@dataclass(frozen=True, slots=True)
class CheckpointOptions:
    """Settings that a checkpoint lacks, or that replace its own.

    Parameters
    ----------
    config : str or Path, optional
        Path or URL of a ``config.json`` that replaces the checkpoint's own.
    arch : str, optional
        Replaces the config's ``model_type``.
    map_name : str, optional
        A built-in key map, in place of the one that fits best (``--map``).
    key_map : str or Path, optional
        The user's own key map.
    """

    config: Location | None = None
    arch: str | None = None
    map_name: str | None = None
    key_map: Location | None = None

    @property
    def names_memoryllm(self) -> bool:
        """Whether a setting is given that only a MemoryLLM has."""
        return any(one is not None for one in (self.arch, self.map_name, self.key_map))

    def chosen_map(self) -> KeyMap | None:
        """Return the map that was asked for, or raise `ConfigError`."""
        if self.map_name is not None and self.key_map is not None:
            raise ConfigError("--map and --key-map both choose the names: give one of them")
        if self.key_map is not None:
            return read_key_map(self.key_map)
        return None if self.map_name is None else built_in(self.map_name)

    def check_arch(self) -> None:
        """Raise `ConfigError` if ``arch`` is none of the model types."""
        if self.arch is not None and self.arch not in MODEL_TYPES:
            raise ConfigError(f"--arch {self.arch!r} is unknown: one of {', '.join(MODEL_TYPES)}")
