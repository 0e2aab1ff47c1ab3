"""From token ids to the rows of hashed n-gram tables, as each family of models does it."""

from tolpack.ngrams.families import engram_hashes, longcat_hash, qwen4_exp_hash
from tolpack.ngrams.hashing import NGramHash, NGramStream

__all__ = ["NGramHash", "NGramStream", "engram_hashes", "longcat_hash", "qwen4_exp_hash"]
