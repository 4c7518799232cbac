"""The same loss and gradient with other libraries, on as many ranks.

The problem is logistic, float32, d = 128.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from mpigd.parallel.comm import Comm
from scripts.bench import data, ours
from scripts.bench.harness import ABSENT, Row, Size, median, over_ranks, paired, ratio

D = 128
Array = np.ndarray[Any, Any]
Maker = Callable[[Array, Array, Comm], Callable[[], Any]]


def numpy_passes(X: Array, y: Array, comm: Comm) -> Callable[[], Any]:
    w = np.full(D, 0.01, np.float32)
    y = y.astype(np.float32)

    def work() -> None:
        z = X @ w
        loss = np.logaddexp(0.0, z).sum() - z @ y
        g = X.T @ (1.0 / (1.0 + np.exp(-z)) - y)
        comm.allreduce(np.append(g, loss).astype(np.float64))

    return work


def sklearn_loss(X: Array, y: Array, comm: Comm) -> Callable[[], Any]:
    from sklearn._loss import HalfBinomialLoss
    from sklearn.linear_model._linear_loss import LinearModelLoss

    model = LinearModelLoss(HalfBinomialLoss(), fit_intercept=True)
    w, y = np.full(D + 1, 0.01, np.float32), y.astype(np.float32)

    def work() -> None:
        loss, g = model.loss_gradient(w, X, y)
        comm.allreduce(np.append(g, loss).astype(np.float64))

    return work


def torch_autograd(X: Array, y: Array, comm: Comm) -> Callable[[], Any]:
    import torch

    torch.set_num_threads(1)
    rows, labels = torch.from_numpy(X), torch.from_numpy(y.astype(np.float32))
    w = torch.full((D,), 0.01, requires_grad=True)

    def work() -> None:
        w.grad = None
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            rows @ w, labels, reduction="sum"
        )
        loss.backward()
        comm.allreduce(np.append(w.grad.numpy(), loss.item()).astype(np.float64))

    return work


PEERS: dict[str, tuple[str, Maker]] = {
    "numpy, two passes": ("numpy", numpy_passes),
    "scikit-learn's loss_gradient": ("sklearn", sklearn_loss),
    "torch, autograd on CPU": ("torch", torch_autograd),
}


def measure(comm: Comm, size: Size) -> list[Row]:
    X = data.dense(size.rows(4 * D), D, comm.rank)
    y = data.target("logistic", X.shape[0], comm.rank)
    made = ours.problem(X, comm, y)
    there = {name: make for name, (module, make) in PEERS.items() if find_spec(module)}
    works = {
        "ours": ours.gradient(made),
        **{name: make(X, y, comm) for name, make in there.items()},
    }
    times = paired(comm, works, size.repeats)
    moved = over_ranks(X.nbytes, comm) / 1e9
    rows = [
        Row(
            "peers: ours, d = 128, GB/s",
            moved / median(times["ours"]),
            plot={"peer_speed": moved / median(times["ours"]), "label": "ours"},
        )
    ]
    for name in PEERS:
        if name not in there:
            rows.append(Row(f"peers: {name} / ours, time, d = 128", ABSENT))
            continue
        speed = moved / median(times[name])
        plot = {
            "peer_speed": speed,
            "speed": speed,
            "intensity": 1.0,
            "label": name.split(",")[0].split("'")[0],
            "peer": True,
        }
        rows.append(
            Row(f"peers: {name} / ours, time, d = 128", ratio(times, name, "ours"), plot=plot)
        )
    return rows
