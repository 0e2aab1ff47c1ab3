"""From a table to a pack: `build` shows the main path.

In reading order: `build` (the stages), `settings` (what was asked for), `limits` and `workspace`
(memory, cores, progress), `make_plan` and `plan` (everything that is decided), `encode` (records,
chunk by chunk), `write` (the file). `fixed` plans and encodes ``--bits 16|8|4``, `entropy`
``--bits auto``; `session` builds many packs of one checkpoint.
"""
