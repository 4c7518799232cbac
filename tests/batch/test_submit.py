"""The job scripts that `mpigd submit` writes, and the templates.

Schedulers that cannot be started here are replaced by their variables, which the tests set.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpigd.__main__ import main
from mpigd.commands.submit import TEMPLATES
from mpigd.scoring import fitted_model
from tests.batch.cluster import words, write_job
from tests.faults.jobs import FULL
from tests.launch import Job, environment, needs_openmpi
from tests.scenarios import generate, write

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
ALL = sorted(path.relative_to(TEMPLATES) for path in TEMPLATES.rglob("*.sh"))
SHAPE = [
    "--nodes",
    "3",
    "--ranks",
    "4",
    "--threads",
    "2",
    "--time",
    "1-02:30:00",
    "--directive=--account=me",
]
TRAIN = ["--", "train", "part 1.h5", "--loss", "logistic", "--checkpoint", "c"]
LINES = {
    "slurm": (
        "#SBATCH --nodes=3 --ntasks-per-node=4 --cpus-per-task=2 --time=26:30:00\n"
        "#SBATCH --account=me\n"
    ),
    "pbs": (
        "#PBS -l select=3:ncpus=8:mpiprocs=4:ompthreads=2 -l walltime=26:30:00\n#PBS --account=me\n"
    ),
    "lsf": '#BSUB -n 12 -R "span[ptile=4] affinity[core(2)]" -W 26:30\n#BSUB --account=me\n',
}
ARRAYS = {"slurm": " --array=0-1\n", "pbs": " -J 0-1\n", "lsf": ' -J "mpigd[1-2]"\n'}


def is_a_script(text: str) -> None:
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), text


@pytest.mark.parametrize("name", ALL, ids=str)
def test_a_template(name: Path) -> None:
    """It is a script, scripts/ has it too, and three places in it are to be changed."""
    text = (TEMPLATES / name).read_text()
    is_a_script(text)
    assert (SCRIPTS / name).resolve() == TEMPLATES / name
    assert [text.count(f"\n# <{number}> ") for number in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize("scheduler", LINES)
@pytest.mark.parametrize("sweep", [[], ["--sweep", "l2=1e-4,1"]], ids=" ".join)
@pytest.mark.parametrize("launcher", [[], ["--launcher", "mpirun"]], ids=" ".join)
def test_a_dry_run(
    scheduler: str, launcher: list[str], sweep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["submit", "--scheduler", scheduler, *SHAPE, *launcher, *sweep, "--dry-run", *TRAIN])
        == 0
    )
    text = capsys.readouterr().out
    is_a_script(text)
    first, rest = LINES[scheduler].split("\n", 1)
    assert (first + ARRAYS[scheduler] + rest if sweep else LINES[scheduler]) in text
    assert ("\noption=l2 values=(1e-4 1)\n" in text) == bool(sweep)
    limit = "" if scheduler == "slurm" else " --max-time 95100"
    train = f"train=(train 'part 1.h5' --loss logistic --checkpoint c{limit})\n"
    assert ("\n" if sweep else "\nmodel=model.h5 ") + train in text
    assert f"\nPATH={os.path.dirname(sys.executable)}:" in text
    assert ("B:USR1" in text) == ("mpirun -n" in text) == bool(launcher) or scheduler != "slurm"


NODES = {
    "SLURM_NTASKS": "1",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "0",
}
NODES |= {"PBS_ARRAY_INDEX": "0", "LSB_JOBINDEX": "1"}
AGAIN = {  # what puts the job back into the queue, if not the scheduler by itself
    "slurm/train_mpirun.sh": "scontrol requeue 7",
    "slurm/sweep_mpirun.sh": "scontrol requeue 7",
    "pbs/train.sh": "qsub -v TURN=1 {script}",
    "pbs/sweep.sh": "qsub -v TURN=1 -J 0-1:2 {script}",
    "lsf/train.sh": "",
    "lsf/sweep.sh": "",
}


@pytest.mark.parametrize(
    "name", [name for name in ALL if "\nmpirun" in (TEMPLATES / name).read_text()], ids=str
)
def test_a_lost_node(name: Path, tmp_path: Path) -> None:
    """The job is done only if there is a new model.

    Open MPI's mpirun ends the job with exit code 0 if a node is lost (tests/faults/test_cut.py).
    """
    (tmp_path / "bin").mkdir()
    for program, does in {
        "mpirun": "exec $MADE",
        "qsub": 'echo qsub "$@"',
        "scontrol": 'echo scontrol "$@"',
    }.items():
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / program).chmod(0o755)
    model = tmp_path / ("sweep/l2-1e-6.h5" if name.name.startswith("sweep") else "model.h5")
    model.parent.mkdir(exist_ok=True)
    model.write_text("of an earlier run")
    os.utime(model, (0, 0))
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost\n")
    script = tmp_path / "job.sh"
    script.write_text(
        (TEMPLATES / name).read_text().replace("\nPATH=", f"\nPATH={tmp_path}/bin:$PATH #")
    )
    env = NODES | {
        "PBS_O_WORKDIR": str(tmp_path),
        "PBS_NODEFILE": str(hosts),
        "LSB_DJOB_HOSTFILE": str(hosts),
    }
    for made, code in (("true", 75), ("false", 1), (f"touch {model}", 0)):
        said = os.environ | env | {"MADE": made}
        done = subprocess.run(
            ["bash", script], cwd=tmp_path, env=said, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code, done.stderr
        assert done.stdout.strip() == (AGAIN[str(name)].format(script=script) if code == 75 else "")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--nodes", "0", *TRAIN], "'0'"),
        (["--time", "soon", *TRAIN], "--time soon"),
        (["--time", "0:04:00", *TRAIN], "0:05:00 at least"),
        (["--sweep", "l3=1", *TRAIN], "--sweep l3=1: expected an option"),
        (
            ["--sweep", "l2=1", *TRAIN],
            "--sweep l2=1: expected an option of mpigd train and some values",
        ),
        (["--sweep", "l2=1,a", *TRAIN], "l2 = 'a'"),
        ([*TRAIN, "--epochs", "none"], "epochs"),
        (["--", "evaluate", "m.h5", "d.h5"], "submit is for training runs"),
        (["--launcher", "srun", *TRAIN], "--launcher srun goes with"),
    ],
)
def test_a_mistake_is_told_before_the_queue(
    given: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--scheduler", "lsf", *given]) == 2
    assert why in capsys.readouterr().err


def test_the_script_reaches_the_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if not Path("/usr/bin/bsub").exists():
        assert main(["submit", "--scheduler", "lsf", *TRAIN]) == 69
        assert "bsub is not on the PATH" in capsys.readouterr().err
    (tmp_path / "bsub").write_text(f"#!/bin/sh\ncat >{tmp_path}/got\nexit 3\n")
    (tmp_path / "bsub").chmod(0o755)
    assert main(["submit", "--scheduler", "lsf", *TRAIN]) == 3
    capsys.readouterr()
    assert main(["submit", "--scheduler", "lsf", "--dry-run", *TRAIN]) == 0
    assert capsys.readouterr().out == (tmp_path / "got").read_text()


RESOURCES = {
    "pbs": "#PBS -l select=1:ncpus=2:mpiprocs=2:ompthreads=1 -l walltime=1:00:00",
    "lsf": '#BSUB -n 2 -R "span[ptile=2] affinity[core(1)]" -W 1:00',
}


@pytest.mark.parametrize(
    ("scheduler", "flavour"),
    [
        ("pbs", "mpich"),
        pytest.param("lsf", "openmpi", marks=needs_openmpi),
        *([("lsf", "mpich")] if FULL else []),
    ],
)
def test_pbs_and_lsf_by_hand(scheduler: str, flavour: str, tmp_path: Path) -> None:
    """A run that --max-time stops exits with 75.

    LSF then queues the job again by itself; PBS's script calls qsub.
    """
    data = write(generate("logistic", n=600, d=6, weights=True), tmp_path)
    run = [*words(data, tmp_path, "job"), "--max-time", "8"]
    script = write_job(
        tmp_path / "place", f"{scheduler}/train.sh", RESOURCES[scheduler], run, flavour, slow=True
    )
    hosts, queue = tmp_path / "hosts", tmp_path / "place" / "bin" / "qsub"
    hosts.write_text("localhost\nlocalhost\n")
    queue.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/queued\n')
    queue.chmod(0o755)
    env = environment(
        {
            "PBS_O_WORKDIR": str(tmp_path),
            "PBS_NODEFILE": str(hosts),
            "LSB_DJOB_HOSTFILE": str(hosts),
        },
        flavour,
    )
    for code in (75, 0):
        with Job(["bash", str(script)], env, tmp_path) as job:
            done = job.finish()
        assert done.returncode == code, done.stdout + done.stderr
        if code == 75:
            assert "stopped by the end of its time" in done.stderr
            assert not (tmp_path / "job.h5").exists()
            (tmp_path / "place" / "slow").unlink()
            script.write_text(
                script.read_text().replace("--max-time 8", "--max-time 80")
            )  # the machine may be busy
    if scheduler == "pbs":
        assert (tmp_path / "queued").read_text() == f"-v TURN=1 {script}\n"
    with Job(
        [sys.executable, "-m", "mpigd", *words(data, tmp_path, "alone")], environment(), tmp_path
    ) as job:
        assert job.finish().returncode == 0
    assert (
        fitted_model.load(str(tmp_path / "job.h5")).digest
        == fitted_model.load(str(tmp_path / "alone.h5")).digest
    )
