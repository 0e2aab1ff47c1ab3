"""Resources that builds run on: memory, cores, threads, spilled arrays and progress."""
