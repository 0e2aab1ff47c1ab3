"""The token–key–value view of memory FFNs (arXiv 2602.00398 §3): which keys tokens use.

In reading order: `layer_keys` (coefficients of a layer), `scan` (one pass over the vocabulary),
`clusters`, `agreement` and `outliers` (what is measured of it, beside controls), `token_map`
(places in the plane), `lookups` (one token, one key), and `analysis`, which does all of it layer by
layer. `named_tokens` parses what users name.
"""
