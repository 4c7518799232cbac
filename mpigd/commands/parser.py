"""The command line: a parser, and one function per command that runs it.

The functions import MPI, numba and h5py as late as possible: ``mpigd --help`` needs none of them,
and `_connect` must prepare the kernel cache before numba is imported.

To add a command, add a sub-parser in `parser` and a function that takes the parsed arguments and
returns the exit code. Errors are raised as `mpigd.errors.MpigdError`; mpigd/__main__.py reports
them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mpigd import __version__
from mpigd.commands import submit
from mpigd.commands.arguments import Parser, add_options, option_groups
from mpigd.commands.convert import convert_arguments, convert_command
from mpigd.commands.import_data import import_arguments, import_command
from mpigd.commands.score_arguments import evaluate_arguments, predict_arguments
from mpigd.config.schema import FIELDS, Config, resolve
from mpigd.errors import UsageError
from mpigd.parallel import kernel_cache
from mpigd.parallel.comm import Comm, together
from mpigd.parallel.launcher import elsewhere
from mpigd.parallel.session import HANG_TIMEOUT, connect, enter
from mpigd.parallel.standard_streams import put, say

# Minimal time limit, in seconds, for all ranks to start: launchers and busy disks are slow.
STARTING = 30.0
DATA = "HDF5 files or globs, read as one data set in this order"
CONFIG = (
    "TOML file with training options; the environment and the command line override it "
    "(default: no file)"
)


def parser() -> Parser:
    """Return the parser of the command line, with a sub-parser and a function `run` per command."""
    top = Parser(
        prog="mpigd", description="Distributed training of linear and generalised linear models."
    )
    top.add_argument("--version", action="version", version=f"mpigd {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )

    def command(
        name: str, text: str, run: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        """Add a command that `run` carries out, and return its parser."""
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    import_arguments(command("import", "turn CSV, Parquet or svmlight into HDF5", import_command))
    convert_arguments(
        command("convert", "rewrite HDF5 of another program as data for training", convert_command)
    )
    _train_arguments(command("train", "fit a model", train_command))
    _cv_arguments(
        command(
            "cv", "choose the ridge penalty by cross-validation, all folds in one pass", cv_command
        )
    )
    evaluate_arguments(command("evaluate", "score a model on data", evaluate_command))
    predict_arguments(command("predict", "write predictions in row order", predict_command))
    _info_arguments(command("info", "describe a data set, a model or a checkpoint", info_command))
    _plan_arguments(command("plan", "predict memory and times of a run, without MPI", plan_command))
    postmortem = command(
        "postmortem", "say where the ranks of a run were when it ended", postmortem_command
    )
    postmortem.add_argument("folder", help="checkpoint folder of the run to examine")
    submit.add_arguments(
        command(
            "submit", "write a batch script, and submit it", lambda given: submit.run(given, top)
        )
    )
    command("doctor", "check MPI, launcher, binding, HDF5 and numba", doctor_command)
    return top


def _train_arguments(sub: argparse.ArgumentParser) -> None:
    run = option_groups(sub)["run"]
    sub.add_argument("data", nargs="*", help=DATA)
    run.add_argument("-o", "--output", default=None, help="model file to write (default: model.h5)")
    run.add_argument("--config", default=None, help=CONFIG)
    add_options(sub, list(FIELDS))


def _cv_arguments(sub: argparse.ArgumentParser) -> None:
    groups = option_groups(sub)
    run = groups["run"]
    sub.add_argument("data", nargs="+", help=DATA)
    run.add_argument(
        "-o",
        "--output",
        default=None,
        help="file for the chosen model, trained on all rows (default: it is not saved)",
    )
    groups["problem"].add_argument(
        "--l2",
        dest="penalties",
        default="1e-6:1e2:20",
        metavar="LOW:HIGH:COUNT",
        help="ridge penalties to compare: COUNT values with equal ratios from LOW to HIGH, or a "
        "list like 1,0.1,0.01 (default: 1e-6:1e2:20)",
    )
    groups["data"].add_argument(
        "--folds",
        type=int,
        default=5,
        help="number of parts of the rows, each held out once (default: 5)",
    )
    groups["optimiser"].add_argument(
        "--choose",
        default="best",
        metavar="{best,one-se}",
        help="penalty of the model that is trained: the one with the best score (best), or the "
        "largest within one standard error of it (one-se) (default: best)",
    )
    run.add_argument(
        "--chart",
        default=None,
        metavar="FILE",
        help="PNG file for a chart of the scores; needs matplotlib (default: no chart)",
    )
    run.add_argument("--json", action="store_true", help="print one JSON object with every score")
    run.add_argument("--config", default=None, help=CONFIG)
    add_options(sub, [name for name in FIELDS if name != "l2"])


def _info_arguments(sub: argparse.ArgumentParser) -> None:
    run = option_groups(sub)["run"]
    sub.add_argument("file", help="data file, model file or checkpoint file to describe")
    run.add_argument(
        "--json", action="store_true", help="print everything as one JSON object for programs"
    )
    run.add_argument(
        "--summary",
        action="store_true",
        help="print the coefficients of a model with standard errors and tests",
    )
    add_options(sub, ["x", "y", "allow_links", "allow_unwritten"])


def _plan_arguments(sub: argparse.ArgumentParser) -> None:
    run = option_groups(sub)["run"]
    sub.add_argument("data", nargs="+", help=DATA)
    run.add_argument(
        "--ranks",
        type=int,
        default=1,
        help="number of ranks that the planned run will have (default: 1)",
    )
    run.add_argument(
        "--network",
        default=None,
        metavar="ALPHA,BETA",
        help="seconds that the network takes per message and per byte, like 2e-6,1e-10 "
        "(default: those of the profile, or 2e-6,1e-10)",
    )
    run.add_argument(
        "--profile",
        default=None,
        metavar="FILE",
        help="file with the speed of a machine, as scripts/bench/run.py measures it "
        "(default: this machine is measured)",
    )
    run.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    run.add_argument("--config", default=None, help=CONFIG)
    # A plan takes the options of the run that is planned.
    add_options(sub, [name for name in FIELDS if name != "dry_run"])


def _connect(arguments: argparse.Namespace, limit: float | None = None) -> Comm:
    """Join the job, prepare the kernel cache and return the communicator. Collective.

    `limit` is the number of seconds to wait for all ranks.
    """
    what = f"mpigd {arguments.command}"
    kernel_cache.check()
    connect(max(limit or HANG_TIMEOUT, STARTING), what)
    comm = enter(None, what, limit)
    kernel_cache.prepare()
    kernel_cache.import_lean()
    return comm


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the training options that were given on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in FIELDS}


def train_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd train`: fit a model and save it, or with --dry-run print what would be done."""
    config, places = resolve(_options(arguments), arguments.config)
    data = arguments.data or places.get("data")
    output = arguments.output or places["output"]
    if not data:
        raise UsageError(
            "no data given: mpigd train DATA.h5 ... (or data = [...] in the --config file)"
        )
    comm = _connect(arguments, config.hang_timeout)
    from mpigd.training.callbacks.progress import Progress
    from mpigd.training.run_guard import newest, save
    from mpigd.training.trainer import train

    with together(comm):
        if comm.rank == 0:
            _check_output(output)
    progress = Progress(sys.stderr, quiet=config.quiet or comm.rank > 0)
    if config.dry_run:
        from mpigd.training.plan import plan_only

        return plan_only([data] if isinstance(data, str) else data, config, comm)
    before = newest(config)
    model = train(data, config, comm, progress)
    with together(comm):
        if comm.rank == 0:
            save(model.save, output, config, before)
    if comm.rank == 0:
        progress.note(f"{output}: digest {model.digest[:16]}")
    return 0


def cv_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd cv`: compare ridge penalties and train the model of the chosen one."""
    config, _ = resolve(_options(arguments), arguments.config)
    comm = _connect(arguments, config.hang_timeout)
    from mpigd.training.callbacks.progress import Progress
    from mpigd.training.cross_validation import chart, cross_validate, penalties_of, table

    penalties = penalties_of(arguments.penalties)
    with together(comm):
        if comm.rank == 0:
            if arguments.chart and not find_spec("matplotlib"):
                raise UsageError("--chart needs matplotlib: pip install matplotlib")
            if arguments.output:
                _check_output(arguments.output)
    progress = Progress(sys.stderr, quiet=config.quiet or comm.rank > 0)
    found = cross_validate(
        arguments.data, config, penalties, arguments.folds, arguments.choose, comm, progress
    )
    with together(comm):
        if comm.rank == 0:
            if arguments.output:
                found.model.save(arguments.output)
            if arguments.chart:
                chart(found, arguments.chart)
    if comm.rank == 0:
        put(_json(found.plain()) if arguments.json else table(found))
    return 0


def _check_output(path: str) -> None:
    """Raise an error if a model cannot be written to `path`. Only for rank 0, which writes it.

    This is checked before training, since a failure later would lose the result.
    """
    from mpigd.storage.hdf5 import check_target

    if not Path(path).parent.is_dir():
        raise UsageError(f"-o {path}: the folder does not exist")
    check_target(path)


def evaluate_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd evaluate`: print the metrics of a model on data."""
    config, _ = resolve(_options(arguments))
    comm = _connect(arguments)
    from mpigd.scoring.metrics import score_table
    from mpigd.scoring.predict import evaluate

    model = _shared_model(arguments.model, comm)
    scores = evaluate(model, arguments.data, config, comm, _policies(arguments), _note)
    if comm.rank == 0:
        put(_json(scores) if arguments.json else score_table(scores))
    return 0


def predict_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd predict`: write the predictions of a model in row order."""
    config, _ = resolve(_options(arguments))
    comm = _connect(arguments)
    from mpigd.scoring.predict import predict
    from mpigd.scoring.prediction_files import targets_of

    targets = targets_of(arguments.output, arguments.csv, arguments.parquet)
    model = _shared_model(arguments.model, comm)
    source, models, policies = arguments.with_source, [arguments.model], _policies(arguments)
    rows = predict(model, arguments.data, targets, config, comm, source, _note, models, policies)
    if comm.rank == 0:
        say(f"{arguments.output}: {rows:,} predictions\n")
    return 0


def _note(text: str) -> None:
    say(f"note: {text}\n")


def _policies(arguments: argparse.Namespace) -> Any:
    """Return the policies for rows of raw tables that do not fit the encoding of the model."""
    from mpigd.tables.policies import Policies

    return Policies(arguments.missing, arguments.unseen, arguments.on_bad_row, arguments.command)


def _shared_model(path: str, comm: Comm) -> Any:
    """Read a model on every rank. Collective."""
    from mpigd.scoring import fitted_model

    with together(comm):
        model = fitted_model.load(path)
    return model


def _json(value: Any) -> str:
    """Return standard JSON, in which numbers that are not finite are null."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        if isinstance(item, list):
            return [plain(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), allow_nan=False)


def info_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd info`: describe a data set, a model or a checkpoint."""
    config: Config = resolve(_options(arguments))[0]
    from mpigd.commands.info import describe, summary, text

    if elsewhere():
        return 0
    if arguments.summary and not arguments.json:
        put(summary(arguments.file))
        return 0
    about = describe(arguments.file, config.x, config.y, config.allow_links, config.allow_unwritten)
    put(_json(about) if arguments.json else text(arguments.file, about))
    return 0


def plan_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd plan`: predict memory and times of a run without MPI."""
    config = resolve(_options(arguments), arguments.config)[0]
    network = _network(arguments.network)
    if arguments.ranks < 1:
        raise UsageError(f"--ranks {arguments.ranks}: must be at least 1")
    if elsewhere():
        return 0
    kernel_cache.prepare()
    kernel_cache.import_lean()
    from mpigd.data.loading import survey
    from mpigd.model.targets import check_target
    from mpigd.parallel.comm import SelfComm
    from mpigd.training.plan import plan, text, to_dict
    from mpigd.training.problem import layout
    from mpigd.training.throughput import read_profile

    profile = read_profile(arguments.profile) if arguments.profile else None
    infos = survey(arguments.data, layout(config), SelfComm())
    check_target(infos[0], config.loss, SelfComm())
    predicted = plan(infos, config, arguments.ranks, network, profile)
    put(_json(to_dict(predicted)) if arguments.json else text(predicted))
    return 0


def _network(text: str | None) -> tuple[float, float] | None:
    """Return the seconds per message and per byte of --network ALPHA,BETA. Raises UsageError."""
    if text is None:
        return None
    try:
        alpha, beta = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--network {text}: expected two numbers, ALPHA,BETA") from None
    return alpha, beta


def doctor_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd doctor`: check MPI, launcher, binding, HDF5 and numba."""
    comm = _connect(arguments)
    from mpigd.commands.doctor import run

    return int(run(comm))


def postmortem_command(arguments: argparse.Namespace) -> int:
    """Run `mpigd postmortem`: print where the ranks of a run were when it ended."""
    from mpigd.parallel.flight_recorder import report

    if not elsewhere():
        put(report(arguments.folder))
    return 0
