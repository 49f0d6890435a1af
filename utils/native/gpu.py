"""Projection, search, W~ and gradient scaling of every method on the GPU: two Triton kernels.

Formulas and source: utils/binarize.py; the same for the CPU: utils/native/cpu.cpp. One program per
filter does the whole forward pass, without a sort, atomics or host synchronization; the filter is
read again from the L1 or L2 cache in every round of the search, whose T comparisons a weight hide
that. Triton comes with PyTorch's CUDA wheels. Where it is missing, or a kernel cannot be compiled
or launched, `supports` is False from then on, with one warning.

How the search guarantees J >= (1 - 1e-4)·J* on every filter (J centred: without the constant
total²/n, the part that depends on the partition):

- Marking the weights above an edge e gives a point (K, S), their number and sum, and
  J = X²·n / (K·(n - K)) with X = S - K·total/n >= 0. A boundary inside the bin (e, e'] adds the k
  largest of its m weights, which sum to s: their sum is at most k·e', and at most s - (m - k)·e.
  So the points of all these boundaries lie in a triangle between both lines and the chord from
  edge to edge. J is convex in (K, S), so it is largest at a corner: an edge, which was evaluated,
  or the apex, where the lines meet (moved along them into 1 <= K <= n - 1, where boundaries are).
- A bin is closed when its apex is not above (1 + TOLERANCE) times the best edge yet, or when it
  has no boundary inside: at most one weight, or no float32 between its edges. When all are closed
  J >= J*/(1 + TOLERANCE). Counts are exact; float32 sums err by less than 1e-5 of J.
- It ends: each round either moves `left`, which never decreases, to a larger float, or halves
  [left, right], which after finitely many times has no float between its edges. Usually the open
  bins are two to four neighbours and 3 or 4 rounds are enough.
"""
import warnings

import torch
from torch import Tensor

try:
    import triton
    from triton import language as tl
except ImportError:     # a PyTorch without CUDA
    triton = None

FEWEST_WEIGHTS, MOST_WEIGHTS = 2, 200_000   # of a filter: float32 sums of more are not vouched for
BINS = 16               # of a round of the search; a power of two
TOLERANCE = 1e-6        # of J in the search; below 1e-7, float32 cannot tell
BACKWARD_BLOCK = 1024   # weights a program of the backward pass


class Unsupported(Exception):
    """A kernel could not be compiled or launched; no tensor was changed."""


if triton:
    _BINS, _TOLERANCE = tl.constexpr(BINS), tl.constexpr(TOLERANCE)
    # The largest negative float32: a weight of 0 or -0 is above it, as sign(0) = +1.
    _SIGN_BOUNDARY = tl.constexpr(-2.0 ** -149)
    _RUN = tl.constexpr(32)     # terms that are added in a row, so that float32 stays accurate

    @triton.jit
    def _project(w, channels, taps, CENTRE: tl.constexpr, CHANNELS: tl.constexpr,
                 TAPS: tl.constexpr):
        """Project the filter w (channels, taps) in place; returns its least and largest weight
        and its sum, in tiles of (CHANNELS, TAPS)."""
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
        for run in range(0, n, _RUN * LANES):
            run_total = tl.zeros([LANES], tl.float32)
            for start in range(run, tl.minimum(run + _RUN * LANES, n), LANES):
                i = start + tl.arange(0, LANES)
                run_total += tl.load(w + i, i < n, shift) - shift
            total += run_total
        return tl.sum(total)

    @triton.jit
    def _above(w, n, edges, shift, total, LANES: tl.constexpr):
        """For every edge, how many of the n weights are above it, and their sum, minus `shift` each.

        shift: about the mean. Counted are the weights on the side of the edge away from it, whose
        differences from it have one sign, so that nothing cancels: those above an edge that is not
        below the mean, else those not above, as -1. Their complement is n and `total`.
        """
        is_low = tl.where(edges < shift, 1.0, 0.0)
        count = tl.zeros([edges.shape[0], LANES], tl.float32)
        above = tl.zeros([edges.shape[0], LANES], tl.float32)
        for run in range(0, n, _RUN * LANES):
            run_above = tl.zeros([edges.shape[0], LANES], tl.float32)
            end = tl.minimum(run + _RUN * LANES, n)
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
        """J without its constant, in units of unit², of `count` weights that sum to above_sum, of
        n whose mean is `mean`. 0 where all or none are marked."""
        excess = (above_sum - count * mean) / unit
        marked = tl.minimum(tl.maximum(count, 1.0), n - 1.0)
        return excess * excess * (n / (marked * (n - marked)))

    @triton.jit
    def _next(vector, last):
        """vector[1:] and then last."""
        i = tl.arange(0, _BINS)
        return tl.where(i < _BINS - 1, tl.gather(vector, (i + 1) % _BINS, 0), last)

    @triton.jit
    def _at(vector, index):
        """vector[index]"""
        return tl.sum(tl.where(tl.arange(0, _BINS) == index, vector, 0.0))

    @triton.jit
    def _search(w, n, low, high, shift, total, LANES: tl.constexpr):
        """The edge with the largest J that the search finds, and that J. Needs low < high."""
        mean, unit = total / n, high - low
        best, best_edge = -1.0, low
        # Bins of [left, right] are searched, of [right, end] later; above each: count and sum.
        left, right, right_count, right_sum = low, high, 0.0, 0.0
        end, end_count, end_sum = high, 0.0, 0.0
        bins = tl.arange(0, _BINS)
        # The first edges are close to each other around the mean, where most optima are.
        x = bins * (2.0 / _BINS) - 1
        edge = shift + tl.where(x < 0, shift - low, high - shift) * (0.1 * x + 0.9 * x * x * x)
        while left < end:
            edge = tl.where(bins == 0, left, tl.minimum(tl.maximum(edge, left), right))
            count, above = _above(w, n, edge, shift, total, LANES)
            value, index = tl.max(_objective(count, above, n, mean, unit), 0, return_indices=True)
            if value > best:
                best, best_edge = value, _at(edge, index)

            next_edge = _next(edge, right)
            next_count, next_above = _next(count, right_count), _next(above, right_sum)
            members, members_sum = count - next_count, above - next_above
            bottom, top = edge - shift, next_edge - shift
            width = tl.where(next_edge > edge, next_edge - edge, 1.0)
            apex = (members_sum - members * bottom) / width
            apex = tl.minimum(tl.maximum(apex, tl.maximum(1.0 - next_count, 0.0)), members)
            apex_sum = tl.minimum(apex * top, members_sum - (members - apex) * bottom)
            bound = _objective(next_count + apex, next_above + apex_sum, n, mean, unit)
            middle = edge + (next_edge - edge) / 2
            is_open = ((members > 1) & (middle > edge) & (middle < next_edge)
                       & (bound > best * (1 + _TOLERANCE)))
            first = tl.min(tl.where(is_open, bins, _BINS))
            last = tl.max(tl.where(is_open, bins, -1))
            if last < 0:
                left = right
                right, right_count, right_sum = end, end_count, end_sum
            else:
                if right == end:
                    end = _at(next_edge, last)
                    end_count, end_sum = _at(next_count, last), _at(next_above, last)
                last = tl.minimum(last, first + (_BINS // 2 - 1))
                left, right = _at(edge, first), _at(next_edge, last)
                right_count, right_sum = _at(next_count, last), _at(next_above, last)
            edge = left + (right - left) * (bins * (1.0 / _BINS))
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
            if _objective(count, nearer_sum, n, total / n, high - low) >= best:
                boundary, marked, above = nearer, count, nearer_sum
            alpha = shift + above / marked
            beta = shift + (total - above) / (n - marked)
        return alpha, beta, boundary, marked

    @triton.jit
    def forward_kernel(projected, two_valued, values, filters, channels, taps,
                       METHOD: tl.constexpr, CENTRE: tl.constexpr,
                       CHANNELS: tl.constexpr, TAPS: tl.constexpr, LANES: tl.constexpr):
        """One filter a program. See forward_."""
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
            boundary = low * 0.0 + _SIGN_BOUNDARY
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
        """One block of a filter a program. See backward."""
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


_works = True


def _give_up(reason: object):
    """Use these kernels no more, and say why, once."""
    global _works
    if _works:
        _works = False
        warnings.warn('binarization on the GPU runs in PyTorch, correct but slower: '
                      + ' '.join(str(reason).split())[:300])


def _interprets() -> bool:
    """Whether kernels run on CPU tensors: TRITON_INTERPRET=1 when triton was imported."""
    return triton is not None and triton.knobs.runtime.interpret


def supports(weight: Tensor) -> bool:
    """Whether the kernels can work on weights (out, c, kh, kw): float32, contiguous, on a GPU,
    FEWEST_WEIGHTS to MOST_WEIGHTS a filter; False after a failure. Warns once, on a GPU, where
    Triton is missing."""
    is_here = weight.is_cuda or (weight.device.type == 'cpu' and _interprets())
    fits = (is_here and weight.dtype == torch.float32 and weight.dim() > 1
            and weight.is_contiguous() and len(weight) > 0
            and FEWEST_WEIGHTS <= weight[0].numel() <= MOST_WEIGHTS)
    if fits and triton is None:
        _give_up('Triton is not installed')
    return fits and _works


def _launch(kernel, grid, *arguments, **options):
    """Run a kernel on the device of its first argument. Raises Unsupported, nothing else."""
    try:
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **options)
    except Exception as error:      # of the compiler, the C compiler of the launcher, the driver
        _give_up(error or type(error).__name__)
        raise Unsupported(str(error)) from error


def _warps(n: int) -> int:
    """The warps of a program for a filter of n weights: about 16 to 64 weights a thread."""
    return 1 if n <= 1024 else 4 if n <= 8192 else 8 if n <= 32768 else 16


def forward_options(channels: int, taps: int) -> tuple[int, int, dict]:
    """(channels, taps) as the kernel reads filters of this shape, and its constants."""
    is_centred = channels > 1
    if not is_centred:
        channels, taps = taps, 1    # the order of the weights is the same
    warps = _warps(channels * taps)
    lanes = 32 * warps
    tile_taps = min(triton.next_power_of_2(taps), 256)
    return channels, taps, dict(CENTRE=is_centred, TAPS=tile_taps, LANES=lanes, num_warps=warps,
                                CHANNELS=max(1, 4 * lanes // tile_taps))


def forward_(projected: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """Project latent weights (out, c, kh, kw) in place, and binarize them by 'dab', 'xnor' or 'bnn'.

    c: channels per group. Returns W~ of the same shape, and (4, out): alpha, beta, the boundary
    (a weight above it becomes alpha), and how many are above. A constant filter under 'dab' has
    alpha = beta = boundary = its value and counts 1. A filter with NaN has NaN in all of W~.
    One launch. Raises Unsupported, with `projected` as it was.
    """
    filters, channels = projected.shape[:2]
    channels, taps, options = forward_options(channels, projected[0, 0].numel())
    two_valued = torch.empty_like(projected)
    values = projected.new_empty(4, filters)
    _launch(forward_kernel, (filters,), projected, two_valued, values, filters, channels, taps,
            METHOD=method, **options)
    return two_valued, values


def backward(gradient: Tensor, projected: Tensor, values: Tensor, method: str) -> Tensor:
    """The gradient of the latent weights, contiguous, out of that of W~ (both (out, c, kh, kw)).

    projected, values: of forward_. One launch, and a copy of a gradient that is not contiguous.
    Raises Unsupported.
    """
    filters, channels = projected.shape[:2]
    n = projected[0].numel()
    s = 1 - 1 / channels if channels > 1 else 1.0
    latent_gradient = torch.empty_like(projected)
    block = min(BACKWARD_BLOCK, triton.next_power_of_2(n))
    _launch(backward_kernel, (filters, triton.cdiv(n, block)), gradient.contiguous(), projected,
            values, latent_gradient, filters, n, s, METHOD=method, BLOCK=block)
    return latent_gradient
