"""A sweep is compiled only with the loss that it needs.

The compiled code is kept in the cache from process to process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mpigd.model.losses import LOSSES, Loss
from mpigd_kernels import residuals

PROGRAM = """
import numpy as np
from mpigd_kernels import pointwise, residuals
z, y, c = np.ones((1, 4)), np.zeros((1, 4)), np.ones(4)
r, l, spare = np.empty((1, 4)), np.empty(4), np.empty((2, 4))
residuals.residuals(residuals.LOSS, residuals.{name}(1.0), z, y, c, r, l, spare)
others = [kernel for kind, kernel in residuals.KERNELS.items() \
if kind is not residuals.{name} and kernel.signatures]
stats = residuals.residuals.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()), len(others))
"""


def compiled(name: str, cache: Path) -> list[int]:
    """Count what a process of its own has compiled.

    Returns how often it has compiled the loss, found it in the cache, and compiled another loss.
    """
    env = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


def test_each_loss_is_compiled_alone_and_once(tmp_path: Path) -> None:
    assert compiled("Huber", tmp_path) == [1, 0, 0]
    assert compiled("Squared", tmp_path) == [1, 0, 0]
    assert compiled("Huber", tmp_path) == [0, 1, 0]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_sweep_takes_each_loss_for_itself(loss: Loss) -> None:
    rng = np.random.default_rng(0)
    k = 3 if loss.kind == "multiclass" else 1
    z, c = rng.normal(size=(k, 9)), rng.random(9)
    y = np.ones((1, 9))
    found, expected = [(np.empty((k, 9)), np.empty(9)) for _ in range(2)]
    residuals.residuals(residuals.LOSS, loss.with_parameter(0.5), z, y, c, *found, np.empty((2, 9)))
    loss.kernel(z, y[0], c, 0.5, *expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
