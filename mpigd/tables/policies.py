"""Policies for rows that do not fit an encoding, and the advice in messages about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpigd.errors import DataError, UsageError
from mpigd.tables.encoding import UNSEEN, Encoding

MISSING = ("refuse", "mean", "zero", "drop")
ON_BAD_ROW = ("error", "skip")


@dataclass(frozen=True)
class Policies:
    """The policies that a command applies to new data.

    Attributes
    ----------
    missing, unseen : str or None
        Policies that replace those of the encoding, if not None.
    on_bad_row : str
        "error", or "skip" to leave out rows that cannot be encoded.
    command : str
        "import", "import --like", "evaluate" or "predict". Messages advise only options that this
        command has.
    """

    missing: str | None = None
    unseen: str | None = None
    on_bad_row: str = "error"
    command: str = "import --like"

    def __post_init__(self) -> None:
        choices = {"missing": MISSING, "unseen": UNSEEN, "on_bad_row": ON_BAD_ROW}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in (None, *known):
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {value}: expected {', '.join(known)}")
        if self.command == "predict" and self.missing == "drop":
            raise UsageError("--missing drop is not for predict: use --on-bad-row skip")

    @property
    def skips(self) -> bool:
        """Whether rows that cannot be encoded are left out."""
        return self.on_bad_row == "skip"

    def given(self) -> str:
        """Return the options that were given, for a message; "" if there are none."""
        options = {"--missing": self.missing, "--unseen": self.unseen}
        options["--on-bad-row"] = "skip" if self.skips else None
        return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)

    def settle(self, encoding: Encoding, labelled: bool = True) -> Encoding:
        """Return the encoding with these policies in place of its own.

        The encoding may say "drop", if the model was trained on rows without missing values. Only
        `import --like` of labelled data follows this unless the option is given: predictions with
        dropped rows would no longer align with their input.

        Parameters
        ----------
        encoding : Encoding
            The encoding of the training data.
        labelled : bool
            Whether the new data have the target column.

        Returns
        -------
        Encoding
            The encoding to use.

        Raises
        ------
        DataError
            If `unseen` is "other" but no column has a level for rare levels.
        """
        missing = self.missing or encoding.missing
        unasked = self.missing is None and missing == "drop"
        if unasked and (self.command in ("evaluate", "predict") or not labelled):
            missing = "refuse"
        gathers = any(column.rare is not None for column in encoding.columns)
        if self.unseen == "other" and not gathers:
            why = "no column has a level for rare ones, as import --min-count makes it"
            raise DataError(f"--unseen other: {why}: use --unseen zero")
        return replace(encoding, missing=missing, unseen=self.unseen or encoding.unseen)

    def advice(self, *options: str) -> str:
        """Return the advice about a bad row: correct it, or use an option that the command has."""
        if self.command in ("evaluate", "predict"):
            options = (*options, "--on-bad-row skip")
        return "correct it" + (f", or use {_either(options)}" if options else "")

    def of_missing(self, fills: Sequence[str]) -> str:
        """Return the advice about missing values; fills: policies that would fill them in."""
        options = [*fills, *([] if self.command == "predict" else ["drop"])]
        spelled = [f"--missing {option}" for option in options]
        if self.command in ("evaluate", "predict"):
            spelled.append("--on-bad-row skip")
        if self.command == "import" and fills:
            return f"use --missing {_either(options)}, or leave columns out with --drop"
        return "use " + _either(spelled)


def _either(options: Sequence[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
