"""Edits of a pack: new rows for some of its tokens, in a file of their own.

In reading order: `row_changes` (what a row becomes), `edit_pack` (rows of a pack, changed and
written), `write_edits` (the file), `open_changes` and `edit_request` (changes as the command line
asks for them). `suppressing_rows` solves for rows that make next tokens less likely.
"""

DEFAULT_KEYS = 8  # of each layer, that `--suppress-like` takes
