"""From token ids to the rows of hashed n-gram tables, as each family of models does it."""

from tolpack.ngrams.hashing import NGramHash

__all__ = ["NGramHash"]
