"""The configuration: one frozen dataclass, four spellings of each option.

``Config.batch_size`` is ``--batch-size`` on the command line, ``batch_size`` in a TOML file and
``MPIGD_BATCH_SIZE`` in the environment. The command line wins over the environment, that over the file,
that over the default. The configuration that was really used is stored in every model.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import tomllib
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
    "auto", "newton", "newton-cholesky", "lbfgs", "lbfgs-newton", "hybrid", "smoothed-newton", "proximal-newton", "fista",
    "svrg", "sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw",
)  # fmt: skip


def option(
    default: Any,
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
    """A field of Config: its default, help text, allowed range, and what it decides.

    `model`: the trained bits depend on it. `fixed`: a continued run must have the same value.
    """
    metadata = dict(
        help=text,
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
    """Everything a training run can be told. None means: chosen by mode or data, as the help text says."""

    loss: str = option(
        "squared",
        "what to fit",
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
        "full", "rows per step: all, a batch, or drawn ones", ("full", "minibatch", "stochastic")
    )
    batch_size: int | None = option(
        None, "rows per step over all ranks (1024 minibatch, 1 stochastic)", low=1
    )
    epochs: int | None = option(
        None, "passes over the data (1000 full, 5 minibatch, 1 stochastic)", low=1, fixed=False
    )
    optimizer: str = option(
        "auto",
        "auto: the cheapest of newton-cholesky, newton and lbfgs-newton for smooth losses in full mode, smoothed-newton for "
        "others; else adam; with --l1 or bounds proximal-newton, fista, svrg or sgd",
        OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None, "step size; default: from the curvature of the data", above=0, alias="lr", fixed=False
    )
    lr_schedule: str = option(
        "auto",
        "auto is constant in full mode, cosine otherwise",
        ("auto", "constant", "inverse", "cosine", "root"),
        fixed=False,
    )
    warmup: int = option(0, "steps over which the learning rate rises from zero", low=0)
    clip: float | None = option(
        None, "largest norm of a gradient; longer ones are shortened", above=0
    )
    momentum: float = option(0.9, "of the momentum optimiser", low=0, below=1)
    l2: float = option(0.0, "ridge penalty l2/2 |w|^2", low=0)
    l1: float = option(0.0, "lasso penalty l1 |w|_1; with --l2 the elastic net", low=0)
    nonnegative: bool = option(False, "no coefficient below 0: --bounds 0:")
    bounds: str | None = option(
        None, "LOW:HIGH, of every coefficient but the intercept; 0 within them; a side may be empty"
    )
    seed: int = option(0, "of everything random", low=0)
    class_weight: str | None = option(
        None,
        'balanced, or LABEL=WEIGHT,... for classes; a label with a comma as "LABEL"=WEIGHT; may be repeated',
    )
    intercept: bool = option(True, "fit an intercept (never penalised)")
    standardize: bool = option(
        True, "penalise the coefficients of columns divided by their standard deviation"
    )
    delta: float = option(1.35, "where the Huber loss turns linear", above=0)
    quantile: float = option(0.5, "which quantile the quantile loss fits", above=0, high=1)
    dtype: str | None = option(
        None, "of X in memory; default: as in the file", ("float64", "float32", "float16")
    )
    x: str = option("X", "path of the data matrix inside each file")
    y: str = option("y", "path of the target inside each file")
    partition: str = option(
        "range", "which rank holds which rows", ("range", "hash", "file"), model=False
    )
    shuffle: str = option(
        "rows",
        "minibatch: permute all rows, or blocks of 4096 and the rows in them",
        ("rows", "blocks"),
    )
    max_memory: str | None = option(
        None, "of a rank's rows, like 2GB; what does not fit is read again every epoch", model=False
    )
    allow_links: tuple[str, ...] = option(
        (), "folders with other files that data files may refer to", model=False
    )
    allow_unwritten: bool = option(
        False, "take rows that were never written to their files for zeros", model=False
    )
    allow_duplicates: bool = option(
        False, "let a file that is named twice count twice", model=False
    )
    threads: int | None = option(None, "per rank; default: the rank's cores", low=1, model=False)
    reduce: str = option(
        "exact", "exact: the same bits on any machine; native: plain sums", ("exact", "native")
    )
    tol: float = option(
        1e-6, "full mode stops at this relative accuracy; 0 runs all epochs", low=0, fixed=False
    )
    statistics: str = option(
        "auto",
        "standard errors in the model, for info --summary; auto: at an optimum, where they take little time",
        ("auto", "yes", "no"),
        model=False,
    )
    validation: tuple[str, ...] = option((), "data scored after every epoch", fixed=False)
    validate_every: int | None = option(None, "steps between validations; default: an epoch", low=1)
    patience: int | None = option(
        None, "stop after so many validations without improvement; keep the best", low=1
    )
    start: str | None = option(None, "a model whose coefficients are the starting point")
    checkpoint: str | None = option(None, "folder for checkpoints", model=False)
    checkpoint_every: int | None = option(
        None, "steps between checkpoints; default: about a minute", low=1, model=False
    )
    check_replicas: int = option(
        100, "steps between comparisons of all ranks' parameters", low=1, model=False
    )
    resume: str = option("auto", "auto, never, or a checkpoint file", model=False)
    hang_timeout: float = option(
        300.0, "seconds a collective may take before the job is ended", above=0, model=False
    )
    on_failure: str = option(
        "stop",
        "when ranks die: stop, or go on without them (Open MPI)",
        ("stop", "shrink"),
        model=False,
    )
    min_ranks: int = option(
        1, "with --on-failure shrink: stop where fewer are left", low=1, model=False
    )
    max_time: str | None = option(
        None, "save and stop in time: seconds, or [DAYS-]HH:MM:SS", model=False
    )
    on_save_error: str = option(
        "continue", "when a checkpoint cannot be written", ("continue", "stop"), model=False
    )
    log: str | None = option(None, "JSON lines file with every number", model=False)
    dry_run: bool = option(False, "say what would be done, and stop", model=False)
    quiet: bool = option(False, "print errors and warnings only", model=False)

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
        return [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]

    def replace(self, **changes: Any) -> Config:
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
    """The field that `key` spells (hyphens or underscores, aliases), or a UsageError naming the nearest one."""
    name = key.replace("-", "_").lower()
    name = ALIASES.get(name, name)
    if name not in FIELDS:
        near = difflib.get_close_matches(name, [*FIELDS, *ALIASES], 1)
        raise UsageError(
            f"unknown option {key!r}" + (f": did you mean {near[0]!r}?" if near else "")
        )
    return name


def _named(options: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field; `no_intercept = true` is what --no-intercept is on the command line."""
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
    """`value` (from TOML, the environment or Python) in the type of the field `name`, or a UsageError."""
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
    """A Config from option names (any spelling) and values; what they do not say is as in `base`, or the default."""
    return (base or Config()).replace(
        **{name: convert(name, value) for name, value in _named(options).items()}
    )


def resolve(
    given: Mapping[str, Any], path: str | None = None, env: Mapping[str, str] = os.environ
) -> tuple[Config, dict[str, Any]]:
    """Merge command line (`given`), environment and the TOML file `path` over the defaults.

    Returns the Config and what the file says of `data` and `output` (default model.h5), which are no options.
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
    """What a file says of `data` (a text or a list of texts) or of `output` (a text), or a UsageError."""
    texts = value if key == "data" and isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"{path}: {key} = {value!r}: expected a text"
            + (" or a list of texts" if key == "data" else "")
        )
    return value


def read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values for JSON, defaults included."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in config.items()
    }


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of to_dict; options this version does not know are refused."""
    return from_mapping({key: value for key, value in values.items() if value is not None})
