"""Arrays in, arrays out: quantization, low rank, entropy coding, and the record that joins them.

Nothing here reads or writes a file.
"""
