"""The commands of the command line, a module each: they parse, call and print.

torch is imported only by the commands that need it, and only when they run, so that ``inspect``,
``verify`` and ``rows`` work where only the reader is installed.
"""
