"""The configuration: a frozen dataclass with one field per option.

Each option has four spellings: ``Config.batch_size`` is ``--batch-size`` on the command line,
``batch_size`` in a TOML file and ``MPIGD_BATCH_SIZE`` in the environment. The command line
overrides the environment, which overrides the file, which overrides the default (`resolve`). Every
model stores the configuration that was used.

To add an option, add a field to `Config`: the command line, the environment and TOML files follow
from it, and tests/unit/commands/test_help.py checks its help text.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mpigd.config.units import class_weights_of, class_weights_text, limits_of, seconds_of, size_of
from mpigd.errors import UsageError

PREFIX = "MPIGD_"
# Environment variables with the prefix that are no training options.
OTHER_VARIABLES = {"MPIGD_CACHE_DIR", "MPIGD_TMPDIR"}
OPTIMIZERS = (
    "auto", "newton", "newton-cholesky", "lbfgs", "lbfgs-newton", "hybrid", "smoothed-newton",
    "proximal-newton", "fista", "svrg", "sgd", "momentum", "nesterov", "adagrad", "rmsprop",
    "adam", "adamw",
)  # fmt: skip
# The groups of options in --help, in this order, and what each is about.
GROUPS = {
    "problem": "the loss, the penalty and the limits of the coefficients",
    "data": "how the rows are read, distributed and held in memory",
    "optimiser": "the algorithm, its steps, and when it stops",
    "run": "threads, reports and results",
    "failures": "checkpoints, time limits and rank failures",
}


def option(
    default: Any,
    group: str,
    text: str,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    alias: str = "",
    model: bool = True,
    fixed: bool = True,
) -> Any:
    """Declare a field of `Config`: its default, group, help text, allowed range and effect.

    Parameters
    ----------
    default : Any
        The value of an option that is not given. ``--help`` shows it unless it is None, a bool or
        an empty tuple; a default of None is explained in `text`.
    group : str
        The key of `GROUPS` under which ``--help`` lists the option.
    text : str
        The help text: a phrase of at least four words, with the unit of a size or a time.
    choices : tuple of str
        The allowed values; empty if any value of the type is allowed.
    low, high : float or None
        The inclusive limits of a number.
    above, below : float or None
        The exclusive limits of a number.
    alias : str
        A second name of the option.
    model : bool
        Whether the bits of the trained model depend on the option.
    fixed : bool
        Whether a run that continues from a checkpoint must have the same value. Only options with
        `model` can be fixed.
    """
    metadata = dict(
        help=text,
        group=group,
        choices=choices,
        low=low,
        high=high,
        above=above,
        below=below,
        alias=alias,
        model=model,
        fixed=fixed and model,
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All options of a training run.

    An option that is None is chosen from the mode or from the data, as its help text says. The
    order of the fields is the order in which a model file stores them.
    """

    loss: str = option(
        "squared",
        "problem",
        "loss function to minimise, which decides what kind of target is predicted",
        (
            "squared",
            "logistic",
            "softmax",
            "hinge",
            "squared_hinge",
            "huber",
            "quantile",
            "poisson",
            "gamma",
        ),
    )
    mode: str = option(
        "full",
        "optimiser",
        "rows that an optimiser step uses: all of them (full), the next batch of a random "
        "permutation (minibatch), or rows drawn with replacement (stochastic)",
        ("full", "minibatch", "stochastic"),
    )
    batch_size: int | None = option(
        None,
        "optimiser",
        "number of rows per step, summed over all ranks; not for full mode "
        "(default: 1024 in minibatch mode, 1 in stochastic mode)",
        low=1,
    )
    epochs: int | None = option(
        None,
        "optimiser",
        "maximal number of passes over the data "
        "(default: 1000 in full mode, 5 in minibatch mode, 1 in stochastic mode)",
        low=1,
        fixed=False,
    )
    optimizer: str = option(
        "auto",
        "optimiser",
        "optimisation algorithm; in full mode auto takes the cheapest of newton-cholesky, newton "
        "and lbfgs-newton for smooth losses (lbfgs if there are too many columns to factorise), "
        "and smoothed-newton for the others; in the other modes it takes adam; with --l1 or "
        "bounds it takes proximal-newton, fista, svrg or sgd",
        OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None,
        "optimiser",
        "step size of the first-order optimisers "
        "(default: computed from the curvature of the loss on the data; for adagrad 0.3 and for "
        "rmsprop, adam and adamw 0.01, or more if the steps are few; for these four times the "
        "standard deviation of the target if the loss is squared, huber or quantile)",
        above=0,
        alias="lr",
        fixed=False,
    )
    lr_schedule: str = option(
        "auto",
        "optimiser",
        "how the step size changes during the run; auto is constant in full mode (root if the "
        "loss is not smooth and the optimiser does not choose its own steps) and for svrg, and "
        "cosine otherwise",
        ("auto", "constant", "inverse", "cosine", "root"),
        fixed=False,
    )
    warmup: int = option(
        0, "optimiser", "number of steps over which the step size rises linearly from zero", low=0
    )
    clip: float | None = option(
        None,
        "optimiser",
        "largest allowed Euclidean norm of a gradient; a longer gradient is scaled down to it "
        "(default: no limit)",
        above=0,
    )
    momentum: float = option(
        0.9,
        "optimiser",
        "momentum factor of the momentum and nesterov optimisers, from 0 to below 1",
        low=0,
        below=1,
    )
    l2: float = option(
        0.0, "problem", "weight of the ridge penalty, which adds l2/2 |w|^2 to the mean loss", low=0
    )
    l1: float = option(
        0.0,
        "problem",
        "weight of the lasso penalty, which adds l1 |w|_1 to the mean loss; together with --l2 "
        "it is the elastic net",
        low=0,
    )
    nonnegative: bool = option(
        False, "problem", "allow no coefficient below zero, like --bounds 0: (default: any sign)"
    )
    bounds: str | None = option(
        None,
        "problem",
        "lowest and highest value of every coefficient except the intercept, as LOW:HIGH; zero "
        "must lie between them, and a side may be empty (default: no bounds)",
    )
    seed: int = option(
        0, "run", "seed of all random numbers: the same seed gives the same model", low=0
    )
    class_weight: str | None = option(
        None,
        "problem",
        "weights of the rows by class: LABEL=WEIGHT,... or the word balanced for weights inverse "
        'to the class sizes; write a label that has a comma as "LABEL"=WEIGHT; the option may be '
        "repeated (default: every class has weight 1)",
    )
    intercept: bool = option(
        True,
        "problem",
        "fit a model without intercept (default: an intercept is fitted and never penalised)",
    )
    standardize: bool = option(
        True,
        "problem",
        "penalise the coefficients of the columns as they are "
        "(default: of the columns divided by their standard deviations)",
    )
    delta: float = option(
        1.35,
        "problem",
        "absolute residual above which the Huber loss is linear, in units of the target",
        above=0,
    )
    quantile: float = option(
        0.5,
        "problem",
        "quantile that the quantile loss fits, above 0 and at most 1; 0.5 is the median",
        above=0,
        high=1,
    )
    dtype: str | None = option(
        None,
        "data",
        "number type of the data matrix in memory; float16 halves the memory of float32, and "
        "sums stay in float64 (default: the type in the file)",
        ("float64", "float32", "float16"),
    )
    x: str = option("X", "data", "path of the data matrix inside each HDF5 file")
    y: str = option("y", "data", "path of the target inside each HDF5 file")
    partition: str = option(
        "range",
        "data",
        "how rows are distributed over the ranks: consecutive rows (range), by a hash of their "
        "keys or row numbers (hash), or whole files (file); the model is the same",
        ("range", "hash", "file"),
        model=False,
    )
    shuffle: str = option(
        "rows",
        "data",
        "how minibatch mode permutes the data in each epoch: all rows, or blocks of 4096 rows and "
        "the rows within each block",
        ("rows", "blocks"),
    )
    max_memory: str | None = option(
        None,
        "data",
        "largest number of bytes that a rank holds of the data matrix, like 500MB or 2GB; the "
        "other rows are read from disk again in every epoch (default: no limit)",
        model=False,
    )
    allow_links: tuple[str, ...] = option(
        (),
        "data",
        "folders whose files may be reached by links in the data files "
        "(default: nothing outside a data file is read)",
        model=False,
    )
    allow_unwritten: bool = option(
        False,
        "data",
        "read rows that were allocated but never written as zeros (default: they are an error)",
        model=False,
    )
    allow_duplicates: bool = option(
        False,
        "data",
        "count the rows of a file twice if the file is named twice (default: it is an error)",
        model=False,
    )
    threads: int | None = option(
        None,
        "run",
        "number of threads per rank (default: the cores of the rank)",
        low=1,
        model=False,
    )
    reduce: str = option(
        "exact",
        "run",
        "how sums over rows are formed: exact gives the same bits on any number of ranks and "
        "threads, native is a plain floating-point sum",
        ("exact", "native"),
    )
    tol: float = option(
        1e-6,
        "optimiser",
        "relative accuracy of the objective at which full mode stops; 0 runs all epochs",
        low=0,
        fixed=False,
    )
    statistics: str = option(
        "auto",
        "run",
        "whether the model stores standard errors for info --summary; auto computes them at an "
        "optimum if that takes little time",
        ("auto", "yes", "no"),
        model=False,
    )
    validation: tuple[str, ...] = option(
        (),
        "data",
        "data files that are scored after every epoch (default: no validation)",
        fixed=False,
    )
    validate_every: int | None = option(
        None, "optimiser", "number of steps between two validations (default: one epoch)", low=1
    )
    patience: int | None = option(
        None,
        "optimiser",
        "number of validations without improvement after which training stops and the best model "
        "is kept (default: no early stopping)",
        low=1,
    )
    start: str | None = option(
        None,
        "optimiser",
        "model file whose coefficients are the starting point "
        "(default: the best model with an intercept alone)",
    )
    checkpoint: str | None = option(
        None,
        "failures",
        "folder for checkpoints, from which the same command continues (default: no checkpoints)",
        model=False,
    )
    checkpoint_every: int | None = option(
        None,
        "failures",
        "number of steps between two checkpoints (default: as many as take about a minute)",
        low=1,
        model=False,
    )
    check_replicas: int = option(
        100,
        "failures",
        "number of steps after which the parameters of all ranks are compared",
        low=1,
        model=False,
    )
    resume: str = option(
        "auto",
        "failures",
        "where the run continues: from the newest checkpoint if there is one (auto), never, or "
        "from the checkpoint file of this name",
        model=False,
    )
    hang_timeout: float = option(
        300.0,
        "failures",
        "number of seconds that a collective MPI call may take before the job is ended",
        above=0,
        model=False,
    )
    on_failure: str = option(
        "stop",
        "failures",
        "what happens after a rank failure: stop the job, or continue on the remaining ranks "
        "(shrink; needs Open MPI started with ULFM)",
        ("stop", "shrink"),
        model=False,
    )
    min_ranks: int = option(
        1,
        "failures",
        "number of ranks below which a run with --on-failure shrink stops",
        low=1,
        model=False,
    )
    max_time: str | None = option(
        None,
        "failures",
        "time within which the run saves a checkpoint and stops, in seconds or as "
        "[DAYS-]HH:MM:SS (default: no limit)",
        model=False,
    )
    on_save_error: str = option(
        "continue",
        "failures",
        "what happens if a checkpoint cannot be written: continue with a warning, or stop",
        ("continue", "stop"),
        model=False,
    )
    log: str | None = option(
        None,
        "run",
        "file to which every reported number is written as JSON lines (default: no log)",
        model=False,
    )
    dry_run: bool = option(
        False,
        "run",
        "check the options and the data, print what the run would do, and stop",
        model=False,
    )
    quiet: bool = option(
        False, "run", "print only errors and warnings, and no progress", model=False
    )

    def __post_init__(self) -> None:
        for name, value in self.items():
            _check(name, value)
        if self.mode == "full" and self.batch_size is not None:
            raise UsageError(
                "--batch-size goes with --mode minibatch or stochastic; full mode takes all rows"
            )
        if self.shuffle == "blocks" and self.mode != "minibatch":
            raise UsageError("--shuffle blocks goes with --mode minibatch")
        if self.max_memory is not None:
            size_of(self.max_memory)
        if self.nonnegative and self.bounds is not None:
            raise UsageError("--nonnegative is --bounds 0: and does not go with other bounds")
        if self.bounds is not None:
            limits_of(self.bounds)
        if self.class_weight is not None and self.class_weight != "balanced":
            class_weights_of(self.class_weight)
        if self.max_time is not None:
            seconds_of(self.max_time)
            if self.checkpoint is None:
                raise UsageError(
                    "--max-time saves what there is: name the folder with --checkpoint"
                )
        if self.patience is not None and not self.validation:
            raise UsageError("--patience counts validations: name the data with --validation")

    def items(self) -> list[tuple[str, Any]]:
        """Return (name, value) of every field, in their order."""
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def replace(self, **changes: Any) -> Config:
        """Return a checked copy with some fields changed."""
        return dataclasses.replace(self, **changes)


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
TYPES: dict[str, Any] = get_type_hints(Config)
ALIASES = {
    field.metadata["alias"]: name for name, field in FIELDS.items() if field.metadata["alias"]
}


def _check(name: str, value: Any) -> None:
    """Raise UsageError unless `value` is allowed for the field `name`."""
    spelling, limits = "--" + name.replace("_", "-"), FIELDS[name].metadata
    if value is None:
        return
    if limits["choices"] and value not in limits["choices"]:
        near = difflib.get_close_matches(str(value), limits["choices"], 1)
        hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(limits["choices"])
        raise UsageError(f"{spelling} {value}: {hint}")
    if isinstance(value, float) and math.isinf(value):
        raise UsageError(f"{spelling} {value}: must be finite")
    bounds: tuple[tuple[str, Callable[[float], bool], str], ...] = (
        ("low", lambda bound: not value >= bound, "at least"),
        ("above", lambda bound: not value > bound, "above"),
        ("high", lambda bound: not value <= bound, "at most"),
        ("below", lambda bound: not value < bound, "below"),
    )
    for key, fails, phrase in bounds:
        if limits[key] is not None and fails(limits[key]):
            raise UsageError(f"{spelling} {value}: must be {phrase} {limits[key]:g}")


def field_name(key: str) -> str:
    """Return the name of the field that `key` spells, with hyphens, underscores or as an alias.

    Raises UsageError with the most similar name if there is none.
    """
    name = key.replace("-", "_").lower()
    name = ALIASES.get(name, name)
    if name not in FIELDS:
        near = difflib.get_close_matches(name, [*FIELDS, *ALIASES], 1)
        raise UsageError(
            f"unknown option {key!r}" + (f": did you mean {near[0]!r}?" if near else "")
        )
    return name


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by field name; `no_intercept = true` means what --no-intercept means."""
    named = {}
    for key, value in options.items():
        opposite = key.replace("-", "_").lower().removeprefix("no_")
        if (
            opposite in FIELDS
            and FIELDS[opposite].default is True
            and opposite != key.replace("-", "_").lower()
        ):
            named[opposite] = not convert(opposite, value)
        else:
            named[field_name(key)] = value
    return named


def convert(name: str, value: Any) -> Any:
    """Convert a value from TOML, the environment or Python to the type of a field.

    Parameters
    ----------
    name : str
        The name of a field of `Config`.
    value : Any
        The value; text is parsed.

    Raises
    ------
    UsageError
        If the value does not have the type of the field and cannot be converted to it.
    """
    kinds = get_args(TYPES[name]) if isinstance(TYPES[name], types.UnionType) else (TYPES[name],)
    kind = kinds[0]
    if value is None and types.NoneType in kinds:
        return None
    if name == "class_weight" and isinstance(value, Mapping):
        return class_weights_text(value)
    if (
        name == "class_weight"
        and isinstance(value, list | tuple)
        and all(isinstance(part, str) for part in value)
    ):
        return ",".join(value)  # the option was repeated
    if kind == tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(
            isinstance(part, str | os.PathLike) for part in value
        ):
            raise UsageError(
                f"{name.replace('_', '-')} = {value!r}: expected a text or a list of texts"
            )
        return tuple(os.fspath(part) for part in value)
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _boolean(str(value))
        if kind is int and isinstance(value, float) and value != int(value):
            raise ValueError
        if kind is str and not isinstance(value, str | int | float | os.PathLike):
            raise ValueError
        return kind(value) if not isinstance(value, bool) else _refuse()
    except (TypeError, ValueError, OverflowError):
        kind_word = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: "a text",
        }[kind]
        raise UsageError(f"{name.replace('_', '-')} = {value!r}: expected {kind_word}") from None


def _refuse() -> Any:
    raise ValueError


def _boolean(text: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    try:
        return words[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def from_mapping(options: Mapping[str, Any], base: Config | None = None) -> Config:
    """Return a Config with the given options.

    Parameters
    ----------
    options : mapping of str to Any
        Values by option name, in any spelling.
    base : Config or None
        Supplies the options that are not given; None stands for the defaults.

    Raises
    ------
    UsageError
        If an option is unknown or its value is not allowed.
    """
    return (base or Config()).replace(
        **{name: convert(name, value) for name, value in _named(options).items()}
    )


def resolve(
    given: Mapping[str, Any], path: str | None = None, env: Mapping[str, str] = os.environ
) -> tuple[Config, dict[str, Any]]:
    """Merge the command line, the environment, a TOML file and the defaults.

    Parameters
    ----------
    given : mapping of str to Any
        The options on the command line.
    path : str or None
        The TOML file.
    env : mapping of str to str
        The environment, of which variables that begin with ``MPIGD_`` are options.

    Returns
    -------
    config : Config
        The merged configuration.
    places : dict
        The values of ``data`` and ``output`` in the file, which are not options; ``output`` is
        "model.h5" if the file does not set it.

    Raises
    ------
    UsageError
        If the file cannot be read, an option is unknown, or its value is not allowed.
    """
    merged, places = dict[str, Any](), dict[str, Any](output="model.h5")
    if path is not None:
        for key, value in read_toml(path).items():
            if key in ("data", "output"):
                places[key] = _place(path, key, value)
            else:
                merged.update(_named({key: value}))
    for key, value in env.items():
        if key.startswith(PREFIX) and key not in OTHER_VARIABLES:
            merged.update(_named({key[len(PREFIX) :]: value}))
    merged.update(_named(given))
    return from_mapping(merged), places


def _place(path: str, key: str, value: Any) -> Any:
    """Return the value of `data` (a text or a list of texts) or `output` (a text) in a TOML file.

    Raises UsageError if the value has another type.
    """
    texts = value if key == "data" and isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"{path}: {key} = {value!r}: expected a text"
            + (" or a list of texts" if key == "data" else "")
        )
    return value


def read_toml(path: str) -> dict[str, Any]:
    """Read a TOML file. Raises UsageError if it cannot be read or is not TOML."""
    import tomllib

    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """Return all options, defaults included, as values that JSON can represent."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in config.items()
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """Return the Config of values from `to_dict`. Raises UsageError for an unknown option."""
    return from_mapping({key: value for key, value in values.items() if value is not None})
