"""Generators of many sequences at once are those that NumPy makes one by one."""

import numpy as np
import pytest

from modeling_electra_exit.trainers.pretraining.row_generators import row_generators


def draws(generator):
    return [
        generator.integers(2**63),
        *generator.choice(100, 15, replace=False),
        *generator.random(3),
        *generator.integers(7, size=5),
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**40 + 3, 2**64, 2**100 + 5])
@pytest.mark.parametrize("purpose", [(), (1,), (1, 2**33, 0)])
def test_each_is_numpys_own(seed, purpose):
    checksums = np.array([0, 1, 2**31, 2**32 - 1, 123_456_789], dtype=np.uint32)
    found = [draws(generator) for generator in row_generators(seed, 5, checksums, *purpose)]
    assert found == [draws(np.random.default_rng((seed, 5, int(each), *purpose))) for each in checksums]


def test_a_draw_that_keeps_half_a_word_leaves_nothing_to_the_next():
    """PCG64 keeps the other 32 bits of a small integer."""
    found = [generator.integers(10, dtype=np.int32) for generator in row_generators(np.arange(50, dtype=np.uint32))]
    assert found == [np.random.default_rng(each).integers(10, dtype=np.int32) for each in range(50)]


def test_no_rows_make_no_generator():
    assert list(row_generators(1, np.array([], dtype=np.uint32))) == []
