"""The peers of the subject `solve`, one process with two threads.

    python -m scripts.bench.solvers DATA.h5 LOSS L2 OURS.npz OUT.npz BUDGET MODULE ...

Each gets columns that are standardised already, and this is not counted in its time. A peer
tightens its own tolerance until the common objective is within 1e-6 of its optimum. If a fit takes
more than BUDGET times as long as mpigd's, its process is ended. Its time is that of its last fit.
"""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from scripts.bench.common import Common, Part

Array = np.ndarray[Any, Any]
GOAL, TOLERANCES = 1e-6, (1e-4, 1e-6, 1e-8)
THREADS = 2
TASTE = 500  # rows of a first fit, which is not timed
START = 60.0  # seconds for imports and that fit
CONTEXT = multiprocessing.get_context("fork")  # shares the data; this process itself calls no peer
Fit = Callable[
    [Any, Array, Part, float], tuple[Array, Array]
]  # X, y, problem, tolerance -> coef (k, d), intercept (k,)


def scikit(solver: str) -> Fit:
    def fit(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
        from sklearn.linear_model import LogisticRegression, PoissonRegressor

        n = len(y)
        if (
            part.loss == "poisson"
        ):  # the offset as scikit-learn takes it: rates, weighted by exposure
            exposure = np.exp(part.offset)
            model = PoissonRegressor(
                alpha=part.l2 * n / exposure.sum(), solver=solver, tol=tol, max_iter=1000
            )
            model.fit(X, y / exposure, sample_weight=exposure)
            return model.coef_[np.newaxis], np.atleast_1d(model.intercept_)
        model = LogisticRegression(
            C=1.0 / (part.l2 * n), solver=solver, tol=tol, max_iter=1000
        ).fit(X, y)
        return model.coef_, model.intercept_

    return fit


def snapml(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    from snapml import LogisticRegression

    # Its intercept is a column of ones, penalised like the others. With larger numbers in that
    # column its dual descent does not converge.
    model = LogisticRegression(
        regularizer=part.l2 * len(y), tol=tol, max_iter=300, n_jobs=THREADS, fit_intercept=True
    )
    model.fit(X, y)
    return np.asarray(model.coef_).reshape(1, -1), np.atleast_1d(model.intercept_)


def glum(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    return _glum(X, None, y, part, tol)


def _glum(X: Any, weights: Array | None, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    """weights (d,): of the squares of coefficients."""
    from glum import GeneralizedLinearRegressor

    family, P2 = (
        ("poisson" if part.loss == "poisson" else "binomial"),
        ("identity" if weights is None else weights),
    )
    model = GeneralizedLinearRegressor(
        family=family, alpha=part.l2, l1_ratio=0, P2=P2, gradient_tol=tol, max_iter=1000
    )
    model.fit(X, y, offset=part.offset)
    return model.coef_[np.newaxis], np.atleast_1d(model.intercept_)


SPLIT: list[
    tuple[Any, Any, Array]
] = []  # what tabmat was given last, what it made of it, the scales of its columns


def glum_categorical(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    """Use tabmat's categorical matrices for one-hot factors.

    Their columns then hold ones, and the penalty is given their scales. The rows are split into
    these matrices once, in the time of the first fit.
    """
    if not part.levels:
        return glum(X, y, part, tol)
    if not SPLIT or SPLIT[0][0] is not X:
        SPLIT[:] = [(X, *_split(X, part.levels))]
    _, matrix, scales = SPLIT[0]
    coef, intercept = _glum(matrix, scales**2, y, part, tol)
    return coef * scales, intercept


def _split(X: Any, levels: Sequence[int]) -> tuple[Any, Array]:
    import tabmat

    edges, columns = np.cumsum([0, *levels]), X.tocsc()
    factors, scales = [], np.ones(X.shape[1])
    for first, last in itertools.pairwise(edges):
        part = columns[:, first:last].tocsr()
        scales[first + part.indices] = 1.0 / part.data
        factors.append(tabmat.CategoricalMatrix(part.indices, categories=np.arange(last - first)))
    return tabmat.SplitMatrix(
        [*factors, tabmat.DenseMatrix(columns[:, edges[-1] :].toarray())]
    ), scales


def intelex(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    """scikit-learn-intelex, which takes over scikit-learn's fit where it can."""
    from sklearnex.linear_model import LogisticRegression

    model = LogisticRegression(
        C=1.0 / (part.l2 * len(y)), solver="lbfgs", tol=tol, max_iter=1000
    ).fit(X, y)
    return np.asarray(model.coef_), np.atleast_1d(model.intercept_)


def torch(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    import torch as t
    from torch.nn import functional

    t.set_num_threads(THREADS)
    rows, k = t.from_numpy(X), part.k
    labels = t.from_numpy(y).long() if part.loss == "softmax" else t.from_numpy(y.astype(X.dtype))
    offset = None if part.offset is None else t.from_numpy(part.offset.astype(X.dtype))
    W = t.zeros((X.shape[1], k), dtype=rows.dtype, requires_grad=True)
    b = t.zeros(k, dtype=rows.dtype, requires_grad=True)
    best = t.optim.LBFGS(
        [W, b],
        max_iter=1000,
        tolerance_grad=tol * 1e-2,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        best.zero_grad()
        z = rows @ W + b
        if part.loss == "softmax":
            loss = functional.cross_entropy(z, labels)
        elif part.loss == "poisson":
            loss = functional.poisson_nll_loss(z[:, 0] + offset, labels)
        else:
            loss = functional.binary_cross_entropy_with_logits(z[:, 0], labels)
        loss = loss + 0.5 * part.l2 * (W * W).sum()
        loss.backward()
        return loss

    best.step(closure)
    return W.detach().numpy().T.astype(np.float64), b.detach().numpy().astype(np.float64)


FRAMES: list[tuple[Any, Any]] = []  # what Spark was given last, and what it made of it


def spark(X: Any, y: Array, part: Part, tol: float) -> tuple[Array, Array]:
    """Fit with Spark.

    Rows are copied to Spark's own process once, in the time of the first fit, which is rarely the
    last.
    """
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.linalg import Vectors
    from pyspark.sql import SparkSession

    if not FRAMES or FRAMES[0][0] is not X:
        settings = {"spark.ui.enabled": "false", "spark.driver.memory": "8g"}
        session = (
            SparkSession.builder.master(f"local[{THREADS}]").config(map=settings).getOrCreate()
        )
        vectors = (
            Vectors.dense(row) if isinstance(X, np.ndarray) else _sparse(Vectors, row) for row in X
        )
        rows = session.createDataFrame(
            zip(vectors, map(float, y), strict=True), ["features", "label"]
        ).cache()
        rows.count()
        FRAMES[:] = [(X, rows)]
    family = "multinomial" if part.loss == "softmax" else "binomial"
    found = LogisticRegression(
        regParam=part.l2, tol=tol, maxIter=1000, standardization=False, family=family
    ).fit(FRAMES[0][1])
    return found.coefficientMatrix.toArray(), found.interceptVector.toArray()


def _sparse(vectors: Any, row: Any) -> Any:
    return vectors.sparse(row.shape[-1], row.indices, row.data)


LOGISTIC = ("lbfgs", "newton-cholesky", "newton-cg", "saga")
SOLVERS: dict[str, tuple[str, tuple[str, ...], bool, Fit]] = {  # module, losses, takes CSR
    **{
        f"scikit-learn {name}": ("sklearn", ("logistic", "softmax"), True, scikit(name))
        for name in LOGISTIC
    },
    "scikit-learn Poisson lbfgs": ("sklearn", ("poisson",), True, scikit("lbfgs")),
    "scikit-learn Poisson newton-cholesky": (
        "sklearn",
        ("poisson",),
        True,
        scikit("newton-cholesky"),
    ),
    "snapml": ("snapml", ("logistic",), True, snapml),
    "glum": ("glum", ("logistic", "poisson"), True, glum),
    "glum, categorical": ("glum", ("logistic", "poisson"), True, glum_categorical),
    "scikit-learn-intelex lbfgs": ("sklearnex", ("logistic", "softmax"), True, intelex),
    "torch L-BFGS": ("torch", ("logistic", "softmax", "poisson"), False, torch),
    f"pyspark local[{THREADS}]": ("pyspark", ("logistic", "softmax"), True, spark),
}


def installed(module: str) -> bool:
    """pyspark is of use with a Java machine alone."""
    return find_spec(module) is not None and (
        module != "pyspark" or shutil.which("java") is not None
    )


def trials(fit: Fit, common: Common, X: Any, best: float, tell: Any) -> None:
    """Fit at each tolerance, in a process of its own, until one is accurate enough.

    The seconds and the relative error of each fit are sent when it ends.
    """
    fit(
        X[:TASTE], common.y[:TASTE], common.part.of(slice(TASTE)), TOLERANCES[0]
    )  # the first call of a library pays for its start
    tell.send(None)
    for tol in TOLERANCES:
        start = time.perf_counter()
        coef, intercept = fit(X, common.y, common.part, tol)
        spent = time.perf_counter() - start
        error = common.value(*common.from_standardised(coef, intercept)) / best - 1.0
        tell.send((spent, error))
        if error <= GOAL:
            break


def trial(fit: Fit, common: Common, X: Any, best: float, budget: float) -> tuple[float, float]:
    """Seconds and relative error of the last fit that a peer has finished.

    Each fit may take `budget` seconds. Both numbers are infinite if no fit was finished.
    """
    hear, tell = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=trials, args=(fit, common, X, best, tell))
    process.start()
    tell.close()
    found, end = (np.inf, np.inf), time.perf_counter() + START
    try:
        while hear.poll(max(0.0, end - time.perf_counter())):
            told = hear.recv()
            end = time.perf_counter() + budget
            found = told or found
    except EOFError:  # it is through, or has raised what its standard error says
        pass
    process.kill()
    process.join()
    return found


def race(
    common: Common, best: float, budget: float, modules: Sequence[str]
) -> dict[str, tuple[float, float]]:
    """Seconds and relative error of the fit of each installed peer that knows the problem.

    Only `modules` are tried.
    """
    X = common.standardised()
    found = {}
    for name, (module, losses, sparse, fit) in SOLVERS.items():
        known = common.part.loss in losses and (sparse or not common.sparse)
        known &= fit is not glum_categorical or bool(common.part.levels)
        if module in modules and installed(module) and known:
            found[name] = trial(fit, common, X, best, budget)
            print(f"{name}: {found[name][0]:.3g} s, error {found[name][1]:.1e}")
    return found


def main() -> None:
    warnings.simplefilter("ignore")  # of convergence: the objective tells
    data, loss, l2, ours, out, budget, *modules = sys.argv[1:]
    common = Common.read(data, loss, float(l2))
    known = np.load(ours)
    start = known["coef"][-1], known["intercept"][-1]
    best = common.optimum(*start)
    errors = [
        common.value(*point) / best - 1.0
        for point in zip(known["coef"], known["intercept"], strict=True)
    ]
    limit = (
        float(budget) * float(np.nanmax(known["seconds"])) + 1.0
    )  # of a fit: a second for its evaluation
    peers = race(common, best, limit, modules) if float(budget) > 0 else {}
    table = np.array(list(peers.values())).reshape(-1, 2)
    np.savez(
        out,
        errors=np.array(errors),
        names=np.array(list(peers), dtype=str),
        seconds=table[:, 0],
        reached=table[:, 1],
        limit=limit,
    )


if __name__ == "__main__":
    main()
