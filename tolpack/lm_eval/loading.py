"""Models of transformers from what the command line names: folders, or files of a MemoryLLM."""
