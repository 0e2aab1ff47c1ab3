"""Sources of tables: models of known families, tensors of checkpoints, and plain arrays.

Begin with `tolpack.sources.open_source`, which opens all of them, and `tolpack.sources.protocol`,
the interface that they have. `tolpack.sources.families` has a module for each family of models,
whose tables are made of `tolpack.sources.tensors`; a MemoryLLM's are computed by
`tolpack.sources.ffn_table`. Files are read by `tolpack.sources.checkpoint`,
`tolpack.sources.gguf` and `tolpack.sources.arrays`.
"""
