"""From token ids to rows: what `tolpack.pack` is made of.

`table_choice` opens one table of a pack, and `ngram_rows` gives the rows of a text. In the order of
a lookup: `lookup` checks its arguments, `token_map` gives slots, `record_reader` reads the records
of slots (by way of `row_cache`, `prefetching` and `block_decompression`), and `row_decoder` makes
rows of records (with bases and means from `basis_arrays`). `verification`, `code_rates` and
`summary` look at whole packs, and `reopening` opens those that were pickled.
"""
