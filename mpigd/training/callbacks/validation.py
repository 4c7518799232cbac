"""Score validation data during a run, and stop it when the scores no longer improve."""

from __future__ import annotations

import sys
from typing import Any

from mpigd.config.schema import Config
from mpigd.data.column_names import check_columns, tell
from mpigd.data.loading import fingerprint, load
from mpigd.parallel.comm import Comm
from mpigd.scoring.metrics import METRICS, PRIMARY
from mpigd.scoring.predict import Evaluator
from mpigd.training import problem as build
from mpigd.training.callbacks.base import Array, EarlyStop, History


def early_stop(
    problem: build.Problem, config: Config, comm: Comm, epoch: int, history: History
) -> tuple[EarlyStop, str]:
    """Read the --validation data and return the callback that scores them. Collective.

    Parameters
    ----------
    problem, config, comm : Problem, Config, Comm
        Those of the run.
    epoch : int
        Steps in one epoch.
    history : History
        Records of the run, to which the scores are appended.

    Returns
    -------
    tuple (EarlyStop, str)
        The callback, and the fingerprint of the validation data.
    """
    shard = load(config.validation, build.layout(config), comm)
    told = check_columns(shard, problem.shard.X.d, problem.shard.feature_names)
    tell(
        "" if config.quiet else told,
        lambda text: print(f"note: {text}", file=sys.stderr, flush=True),
        comm,
    )
    evaluator = Evaluator(shard, problem.loss, problem.objective.parameter, problem.classes, comm)
    scaling, k, metric = problem.objective.scaling, problem.k, PRIMARY[problem.loss.kind]

    def score(w: Array) -> dict[str, Any]:
        return evaluator.scores(*scaling.coefficients(w, k))

    higher, every = METRICS[metric] == "higher", config.validate_every or epoch
    return EarlyStop(score, metric, higher, every, config.patience, history.records), fingerprint(
        shard, comm
    )
