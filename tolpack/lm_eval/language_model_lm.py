"""Any `LanguageModel` for lm-eval's tasks of log-likelihoods, such as the reference decoder.

It serves where a memory is changed that is in no file, as in a study.
"""
