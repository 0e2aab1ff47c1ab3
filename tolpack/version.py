"""The library's version; the format has its own (`tolpack.container.preamble.VERSION`)."""

__version__ = "0.1.0"
# What packs, part files and jobs name as the program that made them.
PRODUCER = f"tolpack {__version__}"
