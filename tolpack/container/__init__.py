"""The file itself: preamble, header, sections and blocks of bytes (``formats/v1/SPEC.md``).

Of the values that are stored it knows how many bytes they take, from `tolpack.codecs`.
"""
