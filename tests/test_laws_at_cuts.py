"""The laws of an AttentionMap around the sizes at which each kernel cuts its work (tests/at_cuts.py)."""

import pytest

from at_cuts import KERNELS, hold
from conftest import TRIALS


@pytest.mark.trial
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_keeps_the_laws_around_its_cuts(name):
    hold(name, *((5, 2) if TRIALS else ()))
