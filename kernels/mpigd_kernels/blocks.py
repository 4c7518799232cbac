"""Steps of a sweep that do not depend on how rows are stored: targets, weights, scalar sums.

Most functions are inlined, because a block of few rows takes less time than some calls.
"""

from mpigd_kernels.compiled import compiled, inlined
from mpigd_kernels.sums import PANEL, WIDTH, add_plain, collect, spread, take_block, within_limits


@inlined
def views(room, k, targets, n):
    """Divide `room` for a block of n rows.

    Returns margins z and residuals r (k, n), targets t (targets, n) and losses l (n,).
    """
    ends = k * n, 2 * k * n, (2 * k + targets) * n
    z, r, t = (
        room[: ends[0]].reshape(k, n),
        room[ends[0] : ends[1]].reshape(k, n),
        room[ends[1] : ends[2]].reshape(targets, n),
    )
    return z, r, t, room[ends[2] : ends[2] + n]


@inlined
def row_of(order, i):
    # Return the number of the i-th row: order[i], or i if `order` is empty.
    return order[i] if order.size > 0 else i


@inlined
def take_vectors(order, begin, y, c, t, weights):
    """Copy targets (q, n) and weights (n,) of a block's rows from `begin` on into t and `weights`.

    With one weight for all rows (c of size 1), `weights` is filled already. Loops instead of
    assignments to slices, since numba's broadcasting takes two seconds to compile.
    """
    n = weights.size
    if order.size > 0:
        rows = order[begin : begin + n]
        for i in range(n):
            for q in range(y.shape[0]):
                t[q, i] = y[q, rows[i]]
            if c.size > 1:
                weights[i] = c[rows[i]]
    else:
        for q in range(y.shape[0]):
            _copy(y[q, begin : begin + n], t[q])
        if c.size > 1:
            _copy(c[begin : begin + n], weights)


@inlined
def _copy(values, out):
    for i in range(out.size):
        out[i] = values[i]


@inlined
def shift_and_keep(z, order, begin, offset, keep):
    """Add the offset to the margins z (k, n), and copy them into `keep`; both may be empty."""
    if offset.size > 0:
        for q in range(z.shape[0]):
            for i in range(z.shape[1]):
                z[q, i] += offset[row_of(order, begin + i)]
    if keep.size > 0:
        for q in range(z.shape[0]):
            for i in range(z.shape[1]):
                keep[q, row_of(order, begin + i)] = z[q, i]


@inlined
def take_scalars(r, l, limits, S, counts, tops, C, lanes):
    """Add losses and residuals to the accumulators `lanes`, or to S as plain sums if C is None.

    Returns False if a limit was exceeded. The sweep is then repeated with wider limits, so the rest
    of this one is skipped. See sums.take_block for the arguments.
    """
    if C is None:
        _add_plain(r, l, S)
        return True
    elif not within_limits(r, l, limits, counts, tops):
        return False
    else:
        spread(l, lanes[0])
        for q in range(r.shape[0]):
            spread(r[q], lanes[1 + q])
        return True


@compiled
def take_vector_sums(r, l, limits, biases, S, counts, tops, C):
    """Do take_scalars, with the sums added to S at once."""
    if C is None:
        _add_plain(r, l, S)
        return True
    else:
        return take_block(r, l, limits, biases, S, counts, tops)


@compiled
def _add_plain(r, l, S):
    S[0, 0] = add_plain(l, S[0, 0])
    for q in range(r.shape[0]):
        S[1 + q, 0] = add_plain(r[q], S[1 + q, 0])


@compiled
def open_lanes(lanes, biases):
    """Set the accumulators (1 + k, WIDTH) of losses and residuals to their biases (2,)."""
    for q in range(lanes.shape[0]):
        for j in range(WIDTH):
            lanes[q, j] = biases[min(q, 1)]


@compiled
def collect_all(lanes, biases, S, C):
    """Move what the accumulators hold into S (1 + k, 2), unless sums are plain."""
    if C is not None:
        for q in range(lanes.shape[0]):
            collect(lanes[q], biases[min(q, 1)], S[q])


@inlined
def keep_lanes_low(lanes, biases, S, C, terms, n):
    """Do collect_all before accumulators may be full; return how many terms each holds at most.

    They held `terms` before, and n rows were added. A block has at most WIDTH * PANEL / 4 rows, so
    half a panel plus a block is never more than a whole panel.
    """
    terms += n // WIDTH + 1
    if terms <= PANEL // 2:
        return terms
    collect_all(lanes, biases, S, C)
    return 0
