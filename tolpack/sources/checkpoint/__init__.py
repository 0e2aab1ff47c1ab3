"""Checkpoints of language models, under any names of files and tensors that are known.

Data goes one way: `shards` finds the files, `safetensors_file` and `torch_file` read their tensors,
`config` the model's settings; `key_map` gives the tensors names of the `schema`, `schema_tensors`
their shapes; `checkpoint` reads values, and `readiness` checks what a table or a decoder needs.
"""
