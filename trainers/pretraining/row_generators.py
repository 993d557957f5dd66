"""Random generators for many sequences at once, bit-identical to those of `np.random.default_rng`.

Creating a generator takes as long as ten draws, mostly for hashing its seed (`numpy.random.SeedSequence`, after
O'Neill's `seed_seq_fe`), an algorithm that NumPy guarantees not to change. Here the hash is vectorized over all
sequences.
"""

from collections.abc import Iterator

import numpy as np


# Constants of `SeedSequence` and PCG64, as in NumPy's `bit_generator.pyx` and `pcg64.h`.
POOL = 4
INIT_A, MULT_A, INIT_B, MULT_B = 0x43B0D7E5, 0x931E8875, 0x8B51F9DD, 0x58F38DED
MIX_LEFT, MIX_RIGHT, SHIFT = np.uint32(0xCA01F9DD), np.uint32(0x4973F715), np.uint32(16)
PCG_MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def row_generators(*entropy: int | np.ndarray) -> Iterator[np.random.Generator]:
    """Yield for each row a generator equal to `np.random.default_rng(entropy of that row)`.

    All rows share one object, whose state is set anew for each row: use it before you advance the iterator.

    Args:
        *entropy: integers of at least 0, shared by all rows, and `uint32` arrays of shape `(rows,)`; at least one
            array.
    """
    bits = np.random.PCG64(0)
    generator, state = np.random.Generator(bits), bits.state
    for high, low, inc_high, inc_low in _spread(_words(entropy)).tolist():
        increment = ((inc_high << 64 | inc_low) << 1 | 1) % 2**128
        start = (high << 64 | low) + increment
        state["state"] = {"state": (start * PCG_MULTIPLIER + increment) % 2**128, "inc": increment}
        bits.state = state
        yield generator


def _words(entropy) -> list[int | np.ndarray]:
    """The entropy as 32-bit words, the lowest word of an integer first."""
    words: list[int | np.ndarray] = []
    for value in entropy:
        if isinstance(value, np.ndarray):
            words.append(value)
            continue
        words.append(value & 0xFFFFFFFF)
        while value := value >> 32:
            words.append(value & 0xFFFFFFFF)
    return words


class _Hash:
    """A hash of 32-bit words whose constant changes with every call."""

    def __init__(self, constant: int, multiplier: int):
        self.constant, self.multiplier = constant, multiplier

    def __call__(self, words: np.ndarray) -> np.ndarray:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.multiplier & 0xFFFFFFFF
        words = words * np.uint32(self.constant)
        return words ^ (words >> SHIFT)


def _spread(words: list[int | np.ndarray]) -> np.ndarray:
    """`SeedSequence(words).generate_state(4, np.uint64)` for each row, `uint64` of shape `(rows, 4)`."""
    rows = next(len(word) for word in words if isinstance(word, np.ndarray))
    given = [np.broadcast_to(np.asarray(word, dtype=np.uint32), rows) for word in words]
    given += [np.zeros(rows, dtype=np.uint32)] * (POOL - len(given))
    spread = _Hash(INIT_A, MULT_A)
    pool = [spread(word) for word in given[:POOL]]

    def mix(target: int, word: np.ndarray):
        mixed = MIX_LEFT * pool[target] - MIX_RIGHT * spread(word)
        pool[target] = mixed ^ (mixed >> SHIFT)

    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                mix(target, pool[source])
    for word in given[POOL:]:
        for target in range(POOL):
            mix(target, word)
    draw = _Hash(INIT_B, MULT_B)
    state = np.stack([draw(pool[number % POOL]) for number in range(2 * POOL)], axis=1).astype(np.uint64)
    return state[:, 0::2] | state[:, 1::2] << np.uint64(32)
