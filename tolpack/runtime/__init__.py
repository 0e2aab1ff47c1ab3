"""Threads, processes, memory, files and progress, for everything else. It knows no tables."""
