"""Frame ``ans``: codes of rows coded by static models with asymmetric numeral systems (SPEC §8).

Coders of several symbols at a time (Duda 2009; Giesen 2014, arXiv 1402.3392), whose models are
chosen by the class of a value's place, and with a trellis by its state.
"""
