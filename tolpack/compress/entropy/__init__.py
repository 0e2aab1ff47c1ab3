"""``--bits auto``: one step for all values, entropy-coded, errors compensated between layers."""
