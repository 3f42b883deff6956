"""Pseudo-random numbers that depend on what is sampled alone, so that a sample is the same in every run."""

import numpy as np


def split_mix(values: np.ndarray) -> np.ndarray:
    """A pseudo-random uint64 for each uint64 (Steele, Lea and Flood, 2014: SplitMix64)."""
    mixed = values * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
