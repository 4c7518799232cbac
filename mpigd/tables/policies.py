"""What becomes of rows that do not fit an encoding, and what a message advises about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpigd.errors import DataError, UsageError
from mpigd.tables.encoding import UNSEEN, Encoding

MISSING = ("refuse", "mean", "zero", "drop")
ON_BAD_ROW = ("error", "skip")


@dataclass(frozen=True)
class Policies:
    """missing, unseen: in place of what the encoding says, if not None. on_bad_row: "error", or
    "skip" to leave out rows that cannot be encoded. command: "import", "import --like", "evaluate"
    or "predict"; messages advise only options that it has."""

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
        """The options that were given, for a message; "" if none was."""
        options = {"--missing": self.missing, "--unseen": self.unseen}
        options["--on-bad-row"] = "skip" if self.skips else None
        return ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)

    def settle(self, encoding: Encoding, labelled: bool = True) -> Encoding:
        """The encoding with these policies. A model of rows without gaps says "drop", but
        predictions that lack rows would no longer stand beside them: only `import --like` of
        labelled data does so unasked. DataError for --unseen other where no column has a level for
        it."""
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
        """What to do about a row: correct it, or one of the options that the command has."""
        if self.command in ("evaluate", "predict"):
            options = (*options, "--on-bad-row skip")
        return "correct it" + (f", or use {_either(options)}" if options else "")

    def of_missing(self, fills: Sequence[str]) -> str:
        """What to do about missing values; fills: policies that put something in their place."""
        options = [*fills, *([] if self.command == "predict" else ["drop"])]
        spelled = [f"--missing {option}" for option in options]
        if self.command in ("evaluate", "predict"):
            spelled.append("--on-bad-row skip")
        if self.command == "import" and fills:
            return f"use --missing {_either(options)}, or leave columns out with --drop"
        return "use " + _either(spelled)


def _either(options: Sequence[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
