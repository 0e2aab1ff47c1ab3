"""Run tolpack's command line from a plain checkout: ``python cli.py build …``."""

from tolpack.cli import main

if __name__ == "__main__":
    main()
