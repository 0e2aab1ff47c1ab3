"""The library's version; the format has its own (`tolpack.container.preamble.VERSION`)."""

__version__ = "0.1.0"
