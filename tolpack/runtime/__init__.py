"""What everything else runs on: threads, processes, memory, files, progress. It knows no tables."""
