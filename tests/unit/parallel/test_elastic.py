"""Rank failures: which ranks go on, and what the others may still do."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from mpigd.config.schema import Config
from mpigd.errors import StorageError, UsageError
from mpigd.parallel.comm import Array, SelfComm
from mpigd.parallel.elastic import CutOff, ElasticComm, enabled, lost, quorum
from mpigd.scoring.fitted_model import Model
from mpigd.training.callbacks.base import Step
from mpigd.training.callbacks.checkpoint_saver import Writer
from mpigd.training.callbacks.progress import Progress
from mpigd.training.checkpoint import Checkpoint, found
from mpigd.training.recovery import Memory, check, survive
from mpigd.training.run_guard import claim
from mpigd.training.trainer import Run, train
from tests.scenarios import shard
from tests.threadcomm import run
from tests.truths import generate


@pytest.mark.parametrize("size", range(1, 9))
def test_no_two_parts_of_a_world_go_on(size: int) -> None:
    """However it falls apart; and if one part has more than half, that one does."""
    for left in range(size + 1):
        for part in map(set, combinations(range(size), left)):
            rest = set(range(size)) - part
            go_on = [quorum(len(some), size, 0 in some) for some in (part, rest)]
            assert sum(go_on) == 1, (part, rest)


class Gone(Exception):
    """An error of MPI with a class of the standard."""

    def __init__(self, kind: int = 0) -> None:
        self.Get_error_class = lambda: kind


class FakeMPI:
    """As much of mpi4py as a communicator needs that is told of failures."""

    Exception, IN_PLACE, SUM, MAX, MIN = Gone, None, None, None, None
    ERR_PROC_FAILED, ERR_PROC_FAILED_PENDING, ERR_REVOKED, ERR_IN_STATUS, ERR_OTHER = range(5)

    def __init__(self, failed: int) -> None:
        self.failed = failed

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 4

    def Get_failed(self) -> Sized:
        return Sized(self.failed)


class Sized:
    def __init__(self, size: int) -> None:
        self.Get_size = lambda: size


@pytest.mark.parametrize(
    ("kind", "failed", "told"), [(0, 0, True), (2, 0, True), (4, 0, False), (4, 1, True)]
)
def test_which_errors_say_that_ranks_are_gone(kind: int, failed: int, told: bool) -> None:
    comm = ElasticComm(FakeMPI(failed), FakeMPI(failed))
    assert lost(comm, Gone(kind)) == told
    assert not lost(comm, OSError())  # ours, whatever else there is
    assert not lost(SelfComm(), Gone(kind))


World = tuple[tuple[int, ...], bool]


class Ranks(FakeMPI):
    """A fake communicator, and also its group.

    `worlds` lists what it shrinks to, one after the other, each with the result of Agree there.
    """

    UNDEFINED = -1

    def __init__(self, ranks: tuple[int, ...], *worlds: World, agreed: bool = True) -> None:
        super().__init__(0)
        self.ranks, self.worlds, self.agreed = ranks, worlds, agreed
        self.Group = self.COMM_WORLD = self

    def Get_size(self) -> int:
        return len(self.ranks)

    def Get_group(self) -> Ranks:
        return self

    def Translate_ranks(self, group: Ranks, ranks: Iterable[int], other: Ranks) -> list[int]:
        return [
            other.ranks.index(group.ranks[rank]) if group.ranks[rank] in other.ranks else -1
            for rank in ranks
        ]

    def Revoke(self) -> None:
        pass

    def Shrink(self) -> Ranks:
        (ranks, agreed), *later = self.worlds
        return Ranks(ranks, *later, agreed=agreed)

    def Allreduce(self, in_place: None, least: Array, how: None) -> None:
        """Another rank has done two steps less, and begun three collectives more.

        Without agreement the values are arbitrary.
        """
        least -= (2, 3) if self.agreed else (99, 99)

    def Agree(self, whole: int) -> int:
        return int(whole and self.agreed)


def of_four(first: tuple[int, ...], then: tuple[int, ...]) -> ElasticComm:
    """They shrink to the first and do not agree, and then do."""
    world = Ranks((0, 1, 2, 3), (first, False), (then, True))
    return ElasticComm(world, world)


@pytest.mark.parametrize(("first", "then"), [((0, 1, 2), (0, 1)), ((1, 2, 3), (1, 2, 3))])
def test_more_may_die_before_all_have_agreed(first: tuple[int, ...], then: tuple[int, ...]) -> None:
    comm = of_four(first, then)
    comm.recorder.count = 50
    assert comm.mend(7) == 5
    assert (comm.size, comm.epoch, comm.recorder.count) == (
        len(then),
        1,
        54,
    )  # this meeting is one too
    assert comm.gone == sorted({0, 1, 2, 3} - set(then))


def test_a_quorum_is_of_the_last_world_that_was_agreed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quorum counts the ranks of the last world that all agreed on.

    Two ranks of three are left, but these are half of four and lack the lowest rank: they end, and
    do not end the others.
    """
    comm = of_four((1, 2, 3), (2, 3))
    with pytest.raises(CutOff, match="2 of 4 ranks are left here"):
        comm.mend(7)
    assert comm.over()
    monkeypatch.setattr("os._exit", sys.exit)
    with pytest.raises(SystemExit, match="75"):
        comm.abort(75)


def position(step: int) -> Checkpoint:
    return Checkpoint(step, np.zeros(2), {}, Config(), {"history": []})


def test_what_is_remembered() -> None:
    steps, memory = iter(range(1, 9)), Memory()
    memory.of(lambda: position(next(steps)))
    assert memory.last == -1
    for _ in range(4):
        memory.after(None, np.zeros(0))  # type: ignore[arg-type]
    assert [kept.step for kept in memory.kept] == [3, 4]
    memory.back(3)
    assert memory.last == 3
    memory.back(-1)  # somebody has done no step yet
    assert memory.kept == []
    now = position(9)
    memory.of(lambda: now).after(None, np.zeros(0))  # type: ignore[arg-type]
    now.w[:] = 1.0  # in place, as optimisers have it
    assert not memory.kept[0].w.any()


def test_a_rank_that_was_asleep_saves_nothing(tmp_path: Path) -> None:
    folder = str(tmp_path)
    held = claim(folder, print)
    position(1).save(folder, 0)
    (new,) = claim(
        folder, print, patience=0.1, epoch=1
    )  # although the first one still holds its own
    assert held and new
    with pytest.raises(StorageError, match="the other ranks went on without this one"):
        position(2).save(folder, 0)
    writer = Writer(folder, 0)
    writer.start(position(3))
    writer.wait()
    assert [type(error) for error in writer.failures()] == [StorageError]
    assert [path.name for path in found(folder)] == ["step-000000000001.h5"]
    assert [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []
    position(2).save(folder, 1)
    assert len(found(folder)) == 2


def test_another_try_goes_on_from_what_is_remembered() -> None:
    """If ranks fail in the middle of a step, only the remaining steps are repeated.

    The bits are those of a run without failures.
    """
    config = Config(loss="logistic", mode="minibatch", batch_size=20, epochs=2)
    table, steps = generate("logistic", n=200, d=4), []
    usual = Run._after

    def failing(self: Run, step: Step, words: object) -> None:
        usual(self, step, words)  # type: ignore[arg-type]
        steps.append(step.batch.step)
        if len(steps) == 7:
            raise Gone

    def fit(on_failure: str) -> Model:
        rows, chosen = shard(table, SelfComm()), config.replace(on_failure=on_failure)
        return train(rows, chosen, SelfComm(), Progress(io.StringIO(), quiet=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_after", failing)
        patch.setattr("mpigd.training.recovery.lost", lambda comm, error: isinstance(error, Gone))
        patch.setattr(
            "mpigd.training.recovery._go_on", lambda memory, *rest: memory.back(memory.last - 1)
        )
        model = fit("shrink")
    assert steps == [*range(7), *range(6, 20)]
    assert model.digest == fit("stop").digest


def test_rows_of_a_caller_cannot_be_read_again() -> None:
    def refused(comm: object) -> str:
        with pytest.raises(UsageError, match="data in files"):
            check(
                Config(on_failure="shrink"), shard(generate("logistic", n=8, d=2), SelfComm()), comm
            )  # type: ignore[arg-type]
        return "refused"

    assert run(2, refused) == ["refused", "refused"]


def test_without_the_option_nothing_is_remembered() -> None:
    assert (
        survive(lambda memory: memory, Config(), SelfComm(), Progress(io.StringIO(), quiet=True))
        is None
    )


def test_enabled() -> None:
    assert enabled({"OMPI_MCA_mpi_ft_enable": "1"})
    assert not enabled({"OMPI_MCA_mpi_ft_enable": "0"})
    assert not enabled({})
