"""Tables inside GGUF files: their header, their types, and their rows.

The ``gguf`` package knows types and how they are dequantized. Its reader maps a file and believes
what it says, so files are read here.
"""
