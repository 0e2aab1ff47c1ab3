"""The token–key–value view of memory FFNs (arXiv 2602.00398 §3): which keys tokens use."""
