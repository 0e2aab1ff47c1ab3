"""Tables that are tensors of a checkpoint: read as they are stored, or computed row by row."""
