"""Arrays in, arrays out: codecs of values, records of all layers, and frames around records.

`registry.CODECS` lists the codecs, a file for each family, and `frames.FRAMES` the frames;
`encodings` says which of them a chunk uses, `record` lays out and decodes one token's bytes, and
`kernels` has compiled loops for it. Nothing here reads or writes a file.
"""
