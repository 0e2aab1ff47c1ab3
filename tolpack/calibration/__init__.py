"""Measurements on a model and a text before a build: token counts and loss metrics, cached."""
