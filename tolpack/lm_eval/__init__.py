"""Packs on the tasks of the language model evaluation harness (lm-eval).

``lm_eval`` takes seconds to import. So it is imported by the modules that run it, not here.
"""

# Tasks made from a text that the user gives; `tolpack/lm_eval/tasks` defines them.
TEXT_TASKS = (
    "tolpack_last_word",
    "tolpack_word_repeated",
    "tolpack_word_new",
    "tolpack_endings",
)
