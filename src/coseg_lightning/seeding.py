"""Random numbers that depend on their purpose, not on which numbers were drawn before."""

import hashlib

import numpy as np


def derive_seed(seed: int, *parts: int | str) -> int:
    """Derive a 64-bit seed for one purpose, the same on every machine, rank and worker.

    Args:
        seed: The run's seed.
        parts: The purpose of the numbers, such as an epoch and a sample's id.

    Returns:
        The derived seed.
    """
    text = "\0".join(str(part) for part in (seed, *parts))
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "big"
    )


def derive_rng(seed: int, *parts: int | str) -> np.random.Generator:
    """Create a NumPy generator that is seeded by `derive_seed`."""
    return np.random.default_rng(derive_seed(seed, *parts))
