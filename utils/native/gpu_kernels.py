"""The Triton kernels of utils/native/gpu.py: project, search, W~ and gradient scaling on a GPU.

Formulas and source: utils/binarize.py; the same for the CPU: utils/native/cpu.cpp. One program per
filter does the whole forward pass, without a sort, atomics or host synchronization. Each round of
the search compares the filter, read again from the L1 or L2 cache, with all edges between BINS
bins. How it guarantees J >= (1 - 1e-4)·J* on every filter (J without the constant total²/n, of
which no partition changes anything):

- Marking the weights above an edge gives a point (K, S), their number and their sum, and
  J = X²·n / (K·(n - K)) with X = S - K·total/n >= 0. A boundary inside a bin adds the k largest of
  its m weights: their sum is at most k times the upper edge and, if all m sum to s, at most
  s - (m - k) times the lower edge. So the points of all its boundaries lie in a triangle between
  these two lines and the chord from edge to edge. J is convex in (K, S) and largest at a corner:
  an edge, which was evaluated, or the apex where the lines meet (moved along them to K >= 1).
- A bin is open if its apex is above (1 + TOLERANCE) times the best edge so far and it has
  boundaries inside: two or more weights, and a float32 between its edges. Only open bins are
  searched further. When none is left, J >= J*/(1 + TOLERANCE), up to the rounding of float32:
  counts are exact, and sums have terms of one sign, at most RUN in a row, so that J errs by less
  than 1e-5 for up to 200,000 weights.
- It ends: each round after the first either moves `left`, which never decreases, to a larger
  float32, or halves [left, right], which after finitely many times has no float32 inside.
  Usually two to four neighbouring bins stay open, and 3 rounds are enough.
"""
import triton
from triton import language as tl

BINS = tl.constexpr(16)             # of a round of the search; a power of two
TOLERANCE = tl.constexpr(1e-6)      # of J in the search; float32 cannot tell much less
# The largest negative float32: a weight of 0 or -0 is above it, as sign(0) = +1.
SIGN_BOUNDARY = tl.constexpr(-2.0 ** -149)
RUN = tl.constexpr(32)              # terms that are added in a row, so that float32 stays accurate


@triton.jit
def _project(w, channels, taps, CENTRE: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """Project w (channels, taps) in place, in tiles; returns its least, its largest, its sum."""
    low = tl.full([CHANNELS, TAPS], 1.0, tl.float32)
    high = tl.full([CHANNELS, TAPS], -1.0, tl.float32)
    total = tl.zeros([CHANNELS, TAPS], tl.float32)
    for tap in range(0, taps, TAPS):
        t = tap + tl.arange(0, TAPS)[None, :]
        mean = tl.zeros([1, TAPS], tl.float32)
        if CENTRE:
            sums = tl.zeros([CHANNELS, TAPS], tl.float32)
            for channel in range(0, channels, CHANNELS):
                c = channel + tl.arange(0, CHANNELS)[:, None]
                sums += tl.load(w + c * taps + t, (c < channels) & (t < taps), 0.0)
            mean = tl.sum(sums, 0, keep_dims=True) / channels
            tl.debug_barrier()      # all threads have read what others write now
        for channel in range(0, channels, CHANNELS):
            c = channel + tl.arange(0, CHANNELS)[:, None]
            is_weight = (c < channels) & (t < taps)
            x = tl.load(w + c * taps + t, is_weight, 0.0) - mean
            x = tl.where(x > 1.0, 1.0, tl.where(x < -1.0, -1.0, x))     # keeps NaN
            tl.store(w + c * taps + t, x, is_weight)
            low = tl.where(is_weight & (x < low), x, low)
            high = tl.where(is_weight & (x > high), x, high)
            total += tl.where(is_weight, x, 0.0)
    return tl.min(low), tl.max(high), tl.sum(total)


@triton.jit
def _total(w, n, shift, LANES: tl.constexpr):
    """The sum of the n weights, each minus `shift`."""
    total = tl.zeros([LANES], tl.float32)
    for run in range(0, n, RUN * LANES):
        run_total = tl.zeros([LANES], tl.float32)
        for start in range(run, tl.minimum(run + RUN * LANES, n), LANES):
            i = start + tl.arange(0, LANES)
            run_total += tl.load(w + i, i < n, shift) - shift
        total += run_total
    return tl.sum(total)


@triton.jit
def _above(w, n, edges, shift, total, LANES: tl.constexpr):
    """For every edge, how many of the n weights are above it, and the sum of these minus `shift`.

    shift: about the mean. Counted are the weights on the side of the edge away from it, whose
    differences from it have one sign, so that nothing cancels: those above an edge that is not
    below the mean, else those not above, as -1. Their complement is n and `total`.
    """
    is_low = tl.where(edges < shift, 1.0, 0.0)
    count = tl.zeros([edges.shape[0], LANES], tl.float32)
    above = tl.zeros([edges.shape[0], LANES], tl.float32)
    for run in range(0, n, RUN * LANES):
        run_above = tl.zeros([edges.shape[0], LANES], tl.float32)
        end = tl.minimum(run + RUN * LANES, n)
        for start in tl.range(run, end, LANES, loop_unroll_factor=2):
            i = start + tl.arange(0, LANES)
            x = tl.load(w + i, i < n, shift)[None, :]   # beyond the end: counts nowhere
            counted = tl.where(x > edges[:, None], 1.0, 0.0) - is_low[:, None]
            count += counted
            run_above += counted * (x - shift)
        above += run_above
    # Integers, because sm_80 and later add them across a warp in one instruction.
    return (tl.sum(count.to(tl.int32), 1).to(tl.float32) + is_low * n,
            tl.sum(above, 1) + is_low * total)


@triton.jit
def _objective(count, above_sum, n, mean, unit):
    """J without its constant, in unit², of `count` of n weights with this sum; mean in units."""
    excess = above_sum / unit - count * mean
    marked = tl.minimum(tl.maximum(count, 1.0), n - 1.0)
    return excess * excess * (n / (marked * (n - marked)))


@triton.jit
def _next(vector, last):
    """vector[1:] and then last."""
    i = tl.arange(0, BINS)
    return tl.where(i < BINS - 1, tl.gather(vector, (i + 1) % BINS, 0), last)


@triton.jit
def _at(vector, index):
    return tl.sum(tl.where(tl.arange(0, BINS) == index, vector, 0.0))


@triton.jit
def _bound(bottom, top, members, members_sum, above_count, above_sum, n, mean, unit):
    """Upper bound of J at a boundary inside this bin: its value at the apex of the triangle."""
    width = tl.where(top > bottom, top - bottom, 1.0)
    apex = (members_sum - members * bottom) / width
    apex = tl.minimum(tl.maximum(apex, tl.maximum(1.0 - above_count, 0.0)), members)
    apex_sum = tl.minimum(apex * top, members_sum - (members - apex) * bottom)
    return _objective(above_count + apex, above_sum + apex_sum, n, mean, unit)


@triton.jit
def _search(w, n, low, high, shift, total, LANES: tl.constexpr):
    """The edge with the largest J that the search finds, and that J. Needs low < high."""
    unit = high - low
    mean = total / unit / n     # in units, in which denormal weights lose nothing
    best, best_edge = -1.0, low
    # Bins of [left, right] are searched, of [right, end] later; above each: count and sum.
    left, right, right_count, right_sum = low, high, 0.0, 0.0
    end, end_count, end_sum = high, 0.0, 0.0
    bins = tl.arange(0, BINS)
    # The first edges are close to each other around the mean, where most optima are.
    x = bins * (2.0 / BINS) - 1
    edge = shift + tl.where(x < 0, shift - low, high - shift) * (0.1 * x + 0.9 * x * x * x)
    while left < end:
        edge = tl.where(bins == 0, left, tl.minimum(tl.maximum(edge, left), right))
        count, above = _above(w, n, edge, shift, total, LANES)
        value, index = tl.max(_objective(count, above, n, mean, unit), 0, return_indices=True)
        if value > best:
            best, best_edge = value, _at(edge, index)

        next_edge, next_count = _next(edge, right), _next(count, right_count)
        next_above = _next(above, right_sum)
        bound = _bound(edge - shift, next_edge - shift, count - next_count, above - next_above,
                       next_count, next_above, n, mean, unit)
        middle = edge + (next_edge - edge) / 2
        is_open = ((count - next_count > 1) & (middle > edge) & (middle < next_edge)
                   & (bound > best * (1 + TOLERANCE)))
        first = tl.min(tl.where(is_open, bins, BINS))
        last = tl.max(tl.where(is_open, bins, -1))
        if last < 0:
            left = right
            right, right_count, right_sum = end, end_count, end_sum
        else:
            if right == end:
                end = _at(next_edge, last)
                end_count, end_sum = _at(next_count, last), _at(next_above, last)
            last = tl.minimum(last, first + (BINS // 2 - 1))
            left, right = _at(edge, first), _at(next_edge, last)
            right_count, right_sum = _at(next_count, last), _at(next_above, last)
        edge = left + (right - left) * (bins * (1.0 / BINS))
    return best_edge, best


@triton.jit
def _above_one(w, n, edge, shift, total, LANES: tl.constexpr):
    """_above for a single edge."""
    count, above = _above(w, n, tl.full([1], edge, tl.float32), shift, total, LANES)
    return tl.sum(count), tl.sum(above)


@triton.jit
def _split(w, n, low, high, shift, LANES: tl.constexpr):
    """alpha, beta, boundary and marked of DAB. shift: the mean of the weights, or nearly."""
    alpha, beta, boundary, marked = high, high, high, 1.0   # of a constant filter
    if low < high:
        total = _total(w, n, shift, LANES)
        boundary, best = _search(w, n, low, high, shift, total, LANES)
        marked, above = _above_one(w, n, boundary, shift, total, LANES)
        # At the optimum every weight takes the nearer value. Where it does not yet, it may.
        nearer = shift + (above / marked + (total - above) / (n - marked)) / 2
        count, nearer_sum = _above_one(w, n, nearer, shift, total, LANES)
        if _objective(count, nearer_sum, n, total / (high - low) / n, high - low) >= best:
            boundary, marked, above = nearer, count, nearer_sum
        alpha = shift + above / marked
        beta = shift + (total - above) / (n - marked)
    return alpha, beta, boundary, marked


@triton.jit
def forward_kernel(projected, two_valued, values, filters, channels, taps, METHOD: tl.constexpr,
                   CENTRE: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr,
                   LANES: tl.constexpr):
    """One filter a program: gpu.forward_."""
    row = tl.program_id(0)
    n = channels * taps
    w = projected + row.to(tl.int64) * n
    out = two_valued + row.to(tl.int64) * n
    low, high, total = _project(w, channels, taps, CENTRE, CHANNELS, TAPS)
    tl.debug_barrier()      # other threads read what these have stored
    if total != total:
        low, high = total, total
    if METHOD == 'dab':
        alpha, beta, boundary, marked = _split(w, n, low, high, total / n, LANES)
    else:
        boundary = low * 0.0 + SIGN_BOUNDARY
        total = _total(w, n, 0.0, LANES)
        marked, positive = _above_one(w, n, boundary, 0.0, total, LANES)
        alpha = (positive - (total - positive)) / n if METHOD == 'xnor' else low * 0.0 + 1.0
        beta = -alpha
    tl.store(values + row, alpha)
    tl.store(values + filters + row, beta)
    tl.store(values + 2 * filters + row, boundary)
    tl.store(values + 3 * filters + row, marked)
    for start in range(0, n, 4 * LANES):
        i = start + tl.arange(0, 4 * LANES)
        x = tl.load(w + i, i < n)
        tl.store(out + i, tl.where(x > boundary, alpha, beta), i < n)


@triton.jit
def backward_kernel(gradient, projected, values, latent_gradient, filters, n, s,
                    METHOD: tl.constexpr, BLOCK: tl.constexpr):
    """One block of one filter a program: gpu.backward."""
    row = tl.program_id(0)
    alpha, beta = tl.load(values + row), tl.load(values + filters + row)
    boundary = tl.load(values + 2 * filters + row)
    marked = tl.load(values + 3 * filters + row)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = row.to(tl.int64) * n + i
    x = tl.load(projected + place, i < n)
    inside = tl.where(tl.abs(x) < 1.0, 1.0, 0.0)
    if METHOD == 'dab':
        factor = tl.where(x > boundary, tl.abs(alpha) * inside + 1.0 / marked,
                          tl.abs(beta) * inside + 1.0 / (n - marked))
    elif METHOD == 'xnor':
        factor = n * alpha * inside + 1.0
    else:
        factor = inside
    tl.store(latent_gradient + place, tl.load(gradient + place, i < n) * (s * factor), i < n)
