"""``--bits 16|8|4``: values in groups with a scale, all of the same number of bits."""
