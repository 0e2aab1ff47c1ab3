"""``python -m tolpack.lm_eval …``: lm-eval's own command line; see `launcher`."""

from tolpack.lm_eval.launcher import main

if __name__ == "__main__":
    main()
