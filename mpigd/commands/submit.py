"""The command `mpigd submit`, which writes a batch script for a training run and submits it.

The templates in mpigd/commands/templates are complete, working scripts. `script` replaces whole
lines of them, which it finds by their beginning.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpigd.commands.arguments import Parser, option_groups
from mpigd.config.schema import FIELDS, resolve
from mpigd.config.units import seconds_of
from mpigd.errors import LaunchError, UsageError
from mpigd.parallel.launcher import elsewhere
from mpigd.parallel.standard_streams import put, say

TEMPLATES = Path(__file__).parent / "templates"
# The program that submits a script, which it reads from its standard input.
COMMANDS = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub"}
# The line with the resources. The line of the template that it replaces has the same text up to the
# first brace.
RESOURCES = {
    "slurm": "#SBATCH --nodes={nodes} --ntasks-per-node={ranks} --cpus-per-task={threads} "
    "--time={clock}",
    "pbs": "#PBS -l select={nodes}:ncpus={cores}:mpiprocs={ranks}:ompthreads={threads} "
    "-l walltime={clock}",
    "lsf": '#BSUB -n {total} -R "span[ptile={ranks}] affinity[core({threads})]" -W {minutes}',
}
ARRAYS = {"slurm": " --array=0-{last}", "pbs": " -J 0-{last}", "lsf": ' -J "mpigd[1-{count}]"'}
# Shortest time limit of a job, in seconds: Slurm sends its signal two to three minutes before the
# end.
LEAST = 300.0
# Seconds before the end of the job at which --max-time ends the run, for schedulers that send no
# signal in time.
NOTICE = 300.0


@dataclass(frozen=True)
class Job:
    """The contents of a batch script.

    Attributes
    ----------
    scheduler : {"slurm", "pbs", "lsf"}
        The batch system.
    launcher : {"srun", "mpirun"}
        The program that starts the ranks.
    nodes, ranks, threads : int
        The number of nodes, of ranks per node, and of threads per rank.
    seconds : float
        The time limit of the job.
    sweep : tuple of (str, list of str) or None
        An option and its values, one run for each.
    directives : tuple of str
        Further options for the scheduler.
    words : tuple of str
        The command of mpigd that the job runs.
    model : str
        The model file that the command writes.
    """

    scheduler: str
    launcher: str
    nodes: int
    ranks: int
    threads: int
    seconds: float
    sweep: tuple[str, list[str]] | None
    directives: tuple[str, ...]
    words: tuple[str, ...]
    model: str


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `mpigd submit` to its parser."""
    group = option_groups(sub)["run"]
    group.add_argument(
        "--scheduler",
        required=True,
        choices=tuple(COMMANDS),
        help="batch system for which the script is written",
    )
    group.add_argument(
        "--nodes", type=_count, default=1, help="number of nodes of the job (default: 1)"
    )
    group.add_argument(
        "--ranks", type=_count, default=1, help="number of ranks on each node (default: 1)"
    )
    group.add_argument(
        "--threads",
        type=_count,
        default=1,
        help="number of threads, and of cores, for each rank (default: 1)",
    )
    group.add_argument(
        "--time",
        default="1:00:00",
        help="time limit of the job, in seconds or as [DAYS-]HH:MM:SS; the job is queued again "
        "until the run is done (default: 1:00:00)",
    )
    group.add_argument(
        "--launcher",
        choices=("srun", "mpirun"),
        help="program that starts the ranks (default: srun for slurm, mpirun otherwise)",
    )
    group.add_argument(
        "--sweep",
        metavar="OPTION=VALUE,...",
        help="submit an array job with one run per value; the models are sweep/OPTION-VALUE.h5 "
        "(default: a single run)",
    )
    group.add_argument(
        "--directive",
        action="append",
        default=[],
        metavar="TEXT",
        help="further line for the scheduler, like --directive=--account=me; may be repeated "
        "(default: none)",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print the script and do not submit it"
    )
    sub.add_argument(
        "words",
        nargs="+",
        metavar="-- train ARGS",
        help="the command of mpigd that the job runs, after two hyphens",
    )


def run(arguments: argparse.Namespace, commands: Parser) -> int:
    """Run `mpigd submit`: write the script and submit it, or with --dry-run print it.

    Parameters
    ----------
    arguments : argparse.Namespace
        The parsed arguments of `mpigd submit`.
    commands : Parser
        The parser for the command that the job runs.

    Returns
    -------
    int
        The exit code: that of the scheduler's program, or 0.

    Raises
    ------
    LaunchError
        If the scheduler's program is not on the PATH.
    UsageError
        If an argument, or the command that the job runs, is invalid.
    """
    text = script(_job(arguments, commands))
    if elsewhere():
        return 0
    if arguments.dry_run:
        put(text.rstrip("\n"))
        return 0
    program = COMMANDS[arguments.scheduler]
    if shutil.which(program) is None:
        raise LaunchError(
            f"{program} is not on the PATH of this machine: "
            "submit from a login node, or see --dry-run"
        )
    return subprocess.run([program], input=text, text=True).returncode


def _job(arguments: argparse.Namespace, commands: Parser) -> Job:
    """Return the job that the arguments describe. Raises UsageError if they are invalid."""
    scheduler, launcher = (
        arguments.scheduler,
        arguments.launcher or ("srun" if arguments.scheduler == "slurm" else "mpirun"),
    )
    if launcher == "srun" and scheduler != "slurm":
        raise UsageError("--launcher srun goes with --scheduler slurm")
    try:
        seconds = seconds_of(arguments.time)
    except UsageError as error:
        raise UsageError(str(error).replace("--max-time", "--time")) from None
    if seconds < LEAST:
        raise UsageError(
            f"--time {arguments.time}: 0:05:00 at least, "
            "since a job saves and stops some minutes before its end"
        )
    sweep = None
    if arguments.sweep:
        option, equals, values = arguments.sweep.partition("=")
        sweep = option.strip().replace("_", "-"), [value for value in values.split(",") if value]
        # At least two values, since PBS refuses an array of one job.
        if not equals or len(sweep[1]) < 2 or option.replace("-", "_") not in {*FIELDS, "lr"}:
            raise UsageError(
                f"--sweep {arguments.sweep}: expected an option of mpigd train "
                "and some values: l2=1e-4,1e-2,1"
            )
    words, model = _checked(arguments.words, scheduler, seconds, sweep, commands)
    more = tuple(arguments.directive)
    return Job(
        scheduler,
        launcher,
        arguments.nodes,
        arguments.ranks,
        arguments.threads,
        seconds,
        sweep,
        more,
        words,
        model,
    )


def _checked(
    words: Sequence[str],
    scheduler: str,
    seconds: float,
    sweep: tuple[str, list[str]] | None,
    commands: Parser,
) -> tuple[tuple[str, ...], str]:
    """Check the command that the job runs; return it and its model file.

    A mistake is found here, and not after the job has waited in a queue. Without a signal from the
    scheduler, --max-time is added to the command.
    """
    if words[0] != "train":
        raise UsageError(
            f"submit is for training runs: mpigd submit ... -- train DATA.h5 ..., not {words[0]}"
        )
    for value in sweep[1] if sweep else [""]:
        whole = [*words, f"--{sweep[0]}", value, "--checkpoint", "sweep"] if sweep else list(words)
        told = commands.parse_args(whole)
        config, places = resolve(
            {name: given for name, given in vars(told).items() if name in FIELDS}, told.config
        )
    model = told.output or places["output"]
    if config.checkpoint is None:
        say("note: without --checkpoint a job that is stopped begins anew\n")
    elif scheduler != "slurm" and config.max_time is None:
        words = [*words, "--max-time", f"{max(seconds - NOTICE, 0.5 * seconds):.0f}"]
    return tuple(words), model


def script(job: Job) -> str:
    """Return the batch script for `job`."""
    name = "sweep" if job.sweep else "train"
    if (job.scheduler, job.launcher) == ("slurm", "mpirun"):
        name += "_mpirun"
    resources = RESOURCES[job.scheduler]
    line = resources + (ARRAYS[job.scheduler] if job.sweep else "")
    count = len(job.sweep[1]) if job.sweep else 0
    filled = line.format(
        **dict(
            nodes=job.nodes,
            ranks=job.ranks,
            threads=job.threads,
            cores=job.ranks * job.threads,
            total=job.nodes * job.ranks,
        ),
        **dict(
            clock=_clock(job.seconds),
            minutes=_clock(job.seconds).rpartition(":")[0],
            count=count,
            last=count - 1,
        ),
    )
    sign = resources.split()[0]
    lines = {
        resources.partition("{")[0]: "\n".join(
            [filled, *(f"{sign} {text}" for text in job.directives)]
        )
    }
    lines["PATH="] = f'PATH={shlex.quote(os.path.dirname(sys.executable))}:"$PATH"'
    train = f"train=({shlex.join(job.words)})"
    if job.sweep:
        lines["option="] = f"option={job.sweep[0]} values=({shlex.join(job.sweep[1])})"
        lines["train=("] = train
    else:
        lines["model="] = f"model={shlex.quote(job.model)} {train}"
    return fill((TEMPLATES / job.scheduler / f"{name}.sh").read_text(encoding="utf-8"), lines)


def fill(text: str, lines: dict[str, str]) -> str:
    """Replace lines of a template.

    Parameters
    ----------
    text : str
        The template.
    lines : dict of str to str
        New lines by the beginning of the line that each replaces. Exactly one line of the template
        must begin with each key.
    """
    found = text.splitlines()
    for beginning, line in lines.items():
        (at,) = [number for number, old in enumerate(found) if old.startswith(beginning)]
        found[at] = line
    return "\n".join([*found, ""])


def _clock(seconds: float) -> str:
    """Return a time as HH:MM:SS in whole minutes, which all schedulers understand."""
    minutes = round(seconds / 60.0)
    return f"{minutes // 60}:{minutes % 60:02d}:00"


def _count(text: str) -> int:
    """Return a positive whole number of the command line. Raises UsageError."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise UsageError(f"{text!r}: --nodes, --ranks and --threads are whole numbers, at least 1")
    return number
