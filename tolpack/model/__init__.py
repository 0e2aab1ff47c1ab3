"""The reference decoder, perplexity and calibration: what packs are judged by (torch)."""
