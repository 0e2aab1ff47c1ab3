"""Checkpoints of language models, whatever their files and tensor names: files, configuration, key
maps.
"""
