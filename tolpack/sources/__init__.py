"""Where tables come from: checkpoints (FFNs to compute) and plain arrays."""
