"""``--bits lossless``: scales and codes as the model's file has them, bit for bit."""
