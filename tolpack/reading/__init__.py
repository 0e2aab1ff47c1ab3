"""From token ids to rows: what `tolpack.pack` is made of, in the order of a lookup.

`lookup` (arguments, distinct slots), `gathering` (records, through `row_cache` and `prefetching`),
`token_map` and `sections` (contents checked), `decoding` (rows); `verification` and `code_rates`
read whole packs, and `reopening` those that were pickled.
"""
