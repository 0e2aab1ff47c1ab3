"""Sources of tables: checkpoints, whose FFNs compute the rows, and plain arrays.

Begin with `tolpack.sources.open_source`, which opens either, and `tolpack.sources.protocol`, the
interface that both have.
"""
