"""lm-eval's own command line with the model type ``tolpack``.

lm-eval has no entry points for plugins: a model type exists once its module is imported.
"""

from __future__ import annotations


def main() -> None:
    """Run lm-eval's command line on ``sys.argv``."""
    from lm_eval.__main__ import cli_evaluate

    import tolpack.lm_eval.model  # noqa: F401 - registers the model type

    cli_evaluate()
