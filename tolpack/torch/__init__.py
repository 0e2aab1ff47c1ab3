"""Rows of packs as tensors: `ToLMemory`, the module that inference code mounts."""

from tolpack.torch.memory import ToLMemory

__all__ = ["ToLMemory"]
