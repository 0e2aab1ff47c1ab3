"""Edits of a pack: new rows for some of its tokens, in a file of their own."""
