"""Learning rates as functions of the step number.

They use IEEE operations alone, so that they have the same bits everywhere: cos and pow of libm
differ between versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# pi / 2 as a float64.
PI_HALF = 1.5707963267948966


@dataclass(frozen=True)
class Rate:
    """A learning rate: `base` times a warm-up times a schedule.

    The schedules are constant: 1; inverse: 1 / (1 + t / epoch); cosine: (1 + cos(pi t / total)) /
    2; root: 1 / sqrt(1 + t), for losses with kinks, with which no constant step converges.

    Parameters
    ----------
    base : float
        Learning rate without warm-up and schedule.
    schedule : str
        One of SCHEDULES.
    warmup : int
        Steps over which the rate rises linearly.
    total : int
        Steps of the run.
    epoch : int
        Steps of an epoch.
    """

    base: float
    schedule: str = "constant"
    warmup: int = 0
    total: int = 1
    epoch: int = 1

    def __call__(self, t: int) -> float:
        """Return the learning rate of step t = 0, 1, ..."""
        rise = min(1.0, (t + 1) / (self.warmup + 1))
        return self.base * rise * SCHEDULES[self.schedule](self, t)


SCHEDULES: dict[str, Callable[[Rate, int], float]] = {
    "constant": lambda rate, t: 1.0,
    "inverse": lambda rate, t: 1.0 / (1.0 + t / rate.epoch),
    "cosine": lambda rate, t: 0.5 * (1.0 + cos_pi(min(1.0, t / rate.total))),
    "root": lambda rate, t: 1.0 / math.sqrt(1.0 + t),
}


def cos_pi(x: float) -> float:
    """Return cos(pi x) for 0 <= x <= 1, by the Taylor series of -sin(pi (x - 1/2)).

    The error is below 1e-15.
    """
    t = 2.0 * PI_HALF * (x - 0.5)
    term = total = t
    for n in range(3, 25, 2):
        term *= -t * t / (n * (n - 1))
        total += term
    return -total
