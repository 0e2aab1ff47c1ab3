"""The stages of a build, as `tolpack.compress.build` calls them.

In reading order: `settings` (what was asked for), `limits` (memory and cores), `weighing` (what is
known of tokens and losses), `layout` (order, chunks and encodings), `passes` (streaming the table),
`loss_model`, `allocate` and `rank_trial` (``--rank auto``), `assembly` (the parts of the pack in
the order of the file).
"""
