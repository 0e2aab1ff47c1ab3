"""Primes, which are the sizes of the heads of hashed n-gram tables."""

from __future__ import annotations

from collections.abc import Container

# Miller and Rabin's test with these bases errs for no number below 3.3 · 10^24 (Sorenson and
# Webster, 2017).
_BASES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_prime(number: int) -> bool:
    """Whether `number`, below 3.3 · 10^24, is prime."""
    if number < 2:
        return False
    for base in _BASES:
        if number % base == 0:
            return number == base
    halvings = ((number - 1) & (1 - number)).bit_length() - 1
    return all(_probable_prime(number, base, halvings) for base in _BASES)


def next_prime(number: int, used: Container[int] = ()) -> int:
    """Return the lowest prime from `number` on that is not in `used`."""
    while not is_prime(number) or number in used:
        number += 1
    return number


def _probable_prime(number: int, base: int, halvings: int) -> bool:
    power = pow(base, (number - 1) >> halvings, number)
    if power in (1, number - 1):
        return True
    for _ in range(halvings - 1):
        power = power * power % number
        if power == number - 1:
            return True
    return False
