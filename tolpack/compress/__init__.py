"""From a table to a pack: `build` shows the main path.

In reading order: `build` (the stages), `settings` (parsed options), `make_plan` and `plan`
(everything that is decided), `encode` (blocks, chunk by chunk), `write` (the file). `fixed` plans
and encodes ``--bits 16|8|4``, `entropy` ``--bits auto``. `build_session` builds many packs of one
checkpoint, `measured_plan` and `size_prediction` serve ``tolpack plan``.
"""
