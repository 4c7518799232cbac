"""Print the versions of this environment and the digests of a few models, for scripts/matrix.sh.

The data are made from integers, so they do not depend on a random generator's version.
"""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import numpy as np

import mpigd

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "logistic": dict(loss="logistic", l2=1e-4),
    "poisson-float32": dict(loss="poisson", dtype="float32"),
    "softmax": dict(loss="softmax", l2=1e-3),
    "lasso": dict(loss="squared", l1=0.01),
    "hinge": dict(loss="hinge", l2=1e-3),
    "adam": dict(loss="logistic", mode="minibatch", batch_size=64, epochs=3),
    "stochastic": dict(loss="squared", mode="stochastic", batch_size=4, epochs=1),
    "float16": dict(loss="logistic", l2=1e-4, dtype="float16"),
}
ROWS, COLUMNS = 3000, 37


def mixed(count: int) -> np.ndarray[Any, Any]:
    """`count` numbers in [-1, 1), float64: splitmix64 of 0, 1, 2, ... (Steele, Lea, Flood 2014)."""
    z = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def main() -> None:
    """Train every configuration in this process and print one line for each."""
    names = ("numpy", "numba", "llvmlite", "h5py")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    print(f"versions Python {platform.python_version()}, {versions}")
    numbers = mixed(ROWS * (COLUMNS + 1)).reshape(ROWS, COLUMNS + 1)
    X, noise = numbers[:, :COLUMNS].copy(), numbers[:, COLUMNS]
    signal = X[:, 0] + 0.5 * X[:, 1] - 0.25 * X[:, 2] + noise
    targets = {
        "logistic": (signal > 0.0).astype(np.float64),
        "hinge": (signal > 0.0).astype(np.float64),
        "poisson": np.floor(np.abs(2.0 * signal)),
        "softmax": np.floor(np.clip(signal + 1.5, 0.0, 2.0)),
        "squared": signal,
    }
    for name, options in CONFIGURATIONS.items():
        model = mpigd.train((X, targets[options["loss"]]), quiet=True, **options)
        print(f"digest {name} {model.digest}", flush=True)


if __name__ == "__main__":
    main()
