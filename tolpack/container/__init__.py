"""The file itself: preamble, header, sections and blocks of bytes (``formats/v1/SPEC.md``).

Nothing here knows what the stored values mean; that is `tolpack.codecs`' part.
"""
