"""Packs on the tasks of the language model evaluation harness (lm-eval)."""
