"""The reference decoder, its texts, and perplexity; needs torch."""
