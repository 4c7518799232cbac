"""Arithmetic of partitions: every row is on exactly one rank, for any files, chunks and ranks."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpigd.data.partition import Extent, Segment, by_file, by_range, cut

SIZES = st.integers(1, 40)
CHUNKS = st.integers(1, 70)
FILES = st.lists(st.builds(Extent, st.integers(0, 300) | st.just(0), CHUNKS), max_size=8)
LENGTHS = st.lists(
    st.lists(st.integers(0, 9) | st.just(0), max_size=60), max_size=5
)  # entries per row of each file


def starts(extents):
    return np.cumsum([0] + [extent.rows for extent in extents]).tolist()


def rows_of(segments, extents):
    """Global rows of segments.

    Each segment must lie in its file and know the number of its first row.
    """
    base, rows = starts(extents), []
    for segment in segments:
        assert 0 <= segment.start < segment.stop <= extents[segment.file].rows
        assert segment.first == base[segment.file] + segment.start
        rows += range(segment.first, segment.first + len(segment))
    return rows


def cover(partition, extents, size):
    """The rows of each rank; together every row once, ascending on each rank."""
    ranks = [rows_of(partition(rank), extents) for rank in range(size)]
    assert all(rows == sorted(rows) for rows in ranks)
    assert sorted(itertools.chain(*ranks)) == list(range(starts(extents)[-1]))
    return ranks


@given(FILES, SIZES)
@settings(deadline=None)
def test_by_range_gives_every_row_to_one_rank_in_order(extents, size):
    ranks = cover(lambda rank: by_range(extents, rank, size), extents, size)
    assert list(itertools.chain(*ranks)) == list(range(starts(extents)[-1])), (
        "boundaries must not cross"
    )


@given(FILES, SIZES)
@settings(deadline=None)
def test_by_range_shares_are_equal_up_to_a_sixteenth(extents, size):
    n = starts(extents)[-1]
    for rank in range(size):
        rows = sum(map(len, by_range(extents, rank, size)))
        assert abs(rows - n / size) <= 1 + n / size / 8, (
            "each end may move by a sixteenth of a share"
        )


@given(FILES, SIZES)
@settings(deadline=None)
def test_by_range_boundaries_lie_at_chunks_where_one_is_near(extents, size):
    n, base = starts(extents)[-1], starts(extents)
    for rank in range(1, size):
        segments = by_range(extents, rank, size)
        exact = rank * n // size
        for segment in segments[:1]:
            file = max(f for f in range(len(extents)) if base[f] <= exact and extents[f].rows > 0)
            if segment.file != file:
                continue
            extent, inside = extents[file], exact - base[file]
            nearest = (inside + extent.chunk // 2) // extent.chunk * extent.chunk
            allowed = abs(nearest - inside) * 16 * size <= n and nearest < extent.rows
            assert segment.start == (nearest if allowed else inside)


def test_by_range_moves_a_boundary_to_the_chunk():
    extents = [Extent(1000, 64)]
    assert by_range(extents, 0, 2) == [Segment(0, 0, 512, 0)]
    assert by_range(extents, 1, 2) == [Segment(0, 512, 1000, 512)]
    at_end = [
        Extent(1012, 20),
        Extent(1008, 20),
    ]  # the nearest chunk would begin behind the end of the file
    assert by_range(at_end, 0, 2) == [Segment(0, 0, 1010, 0)]
    far = [Extent(1000, 300)]
    assert by_range(far, 0, 2) == [Segment(0, 0, 500, 0)], (
        "a large chunk is read twice before a rank waits for another"
    )


def test_more_ranks_than_rows_and_no_rows_at_all():
    extents = [Extent(0, 5), Extent(2, 5), Extent(0, 1), Extent(1, 5)]
    assert [len(rows) for rows in cover(lambda rank: by_range(extents, rank, 7), extents, 7)].count(
        1
    ) == 3
    for none in ([], [Extent(0, 3)], [Extent(0, 1, 0), Extent(0, 1, 0)]):
        for size in (1, 4):
            assert all(
                by_range(none, rank, size) == by_file(none, rank, size) == []
                for rank in range(size)
            )
            assert all(
                by_range(none, rank, size, lambda file, wanted: 0) == [] for rank in range(size)
            )


def test_sizes_beyond_32_bits_stay_exact():
    extents = [Extent(3 * 2**60 + 1, 2**20), Extent(2**60, 1)]
    ends = [by_range(extents, rank, 1000) for rank in range(1000)]
    flat = list(itertools.chain(*ends))
    assert flat[0].first == 0 and flat[-1].first + len(flat[-1]) == 2**62 + 1
    assert all(a.first + len(a) == b.first for a, b in itertools.pairwise(flat))


def sparse(lengths):
    """Extents of CSR files with the given numbers of entries per row, and a search in their indptr.

    A rank does this search in the indptr of a file.
    """
    indptr = [np.cumsum([0, *rows]) for rows in lengths]
    extents = [Extent(len(rows), 8, int(sum(rows))) for rows in lengths]
    return extents, indptr, lambda file, wanted: int(np.searchsorted(indptr[file], wanted))


@given(LENGTHS, SIZES)
@settings(deadline=None)
def test_by_nonzeros_gives_every_row_to_one_rank_in_order(lengths, size):
    extents, _, search = sparse(lengths)
    ranks = cover(lambda rank: by_range(extents, rank, size, search), extents, size)
    assert list(itertools.chain(*ranks)) == list(range(starts(extents)[-1]))


@given(LENGTHS, SIZES)
@settings(deadline=None)
def test_by_nonzeros_balances_entries(lengths, size):
    extents, indptr, search = sparse(lengths)
    total, longest = (
        sum(map(sum, lengths)),
        max((max(rows, default=0) for rows in lengths), default=0),
    )
    for rank in range(size):
        segments = by_range(extents, rank, size, search)
        held = sum(int(indptr[s.file][s.stop] - indptr[s.file][s.start]) for s in segments)
        assert abs(held - total / size) <= longest + 1, (
            "a boundary can miss its place by one row at most"
        )


def test_by_nonzeros_looks_only_into_files_at_a_boundary():
    """A search reads a file: with many files and ranks, a rank must not search them all."""
    extents, _, search = sparse([[3] * 40] * 30)
    for rank in range(8):
        asked = []
        by_range(
            extents,
            rank,
            8,
            lambda file, wanted, asked=asked: asked.append(file) or search(file, wanted),
        )
        assert len(asked) <= 2


@given(FILES, SIZES)
@settings(deadline=None)
def test_by_file_gives_whole_files(extents, size):
    ranks = cover(lambda rank: by_file(extents, rank, size), extents, size)
    for rank in range(size):
        assert all(
            (s.start, s.stop) == (0, extents[s.file].rows) for s in by_file(extents, rank, size)
        )
    loads, largest = sorted(map(len, ranks)), max((extent.rows for extent in extents), default=0)
    assert loads[-1] - loads[0] <= largest, (
        "who has a file more than another had the fewest rows before it"
    )


@pytest.mark.parametrize(
    "rows, size, loads",
    [([4, 3, 3, 2], 2, [6, 6]), ([9, 1, 1, 1], 3, [1, 2, 9]), ([5], 3, [0, 0, 5])],
)
def test_by_file_balances_rows(rows, size, loads):
    extents = [Extent(n, 1) for n in rows]
    assert sorted(sum(map(len, by_file(extents, rank, size))) for rank in range(size)) == loads


@given(FILES, st.integers(0, 2500), st.integers(0, 2500))
@settings(deadline=None)
def test_cut_is_the_rows_asked_for(extents, first, last):
    n = starts(extents)[-1]
    assert rows_of(cut(extents, first, last), extents) == list(range(first, min(last, n)))
