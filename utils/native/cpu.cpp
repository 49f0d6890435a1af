// Distribution-aware binarization of one layer on the CPU: project, split, write, scale the gradient.
// Formulas and source: utils/binarize.py, which has the same in PyTorch. One thread per filter, one
// filter at a time in its cache; built and called by utils/native/cpu.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "threads.h"

namespace {

constexpr int MOST_BINS = 128, FEW = 48;
constexpr int PLACE_BITS = 16, COUNT_BITS = 24; // of places in a bin; of the number of weights in a word

// The best partition yet of n weights that sum to total: `marked` of them, which sum to `sum`.
struct Best {
    double n, total, value = -1, marked = 1, sum = 0;
};

struct Scratch {
    std::vector<uint32_t> place_of;
    std::vector<float> near;
    std::vector<double> means;
    std::vector<float> shifts;
};

// n·(J − total²/n) of `marked` weights that sum to `sum`, of n weights that sum to `total`: the
// largest, or with a negative `error` the smallest, where the sum is off by up to |error|.
inline double objective(double marked, double sum, double n, double total, double error = 0) {
    const double excess = std::max(std::fabs(n * sum - marked * total) + n * error, 0.0);
    return excess * excess / (marked * (n - marked));
}

inline float clamp(float weight) { return std::min(std::max(weight, -1.0f), 1.0f); }

// Centre each tap over the channels (more than one), clamp to [-1, 1]: weights are (channels, taps).
// In rows of 16 channels, so that the inner loops are long whatever the number of taps.
void project(float* weights, int64_t channels, int64_t taps, Scratch& scratch) {
    const int64_t n = channels * taps, row = 16 * taps;
    auto& means = scratch.means;
    auto& shifts = scratch.shifts;
    means.assign(row, 0.0);
    shifts.assign(row, 0.0f);
    if (channels > 1) {
        for (int64_t start = 0; start < n; start += row)
            for (int64_t i = 0; i < std::min(row, n - start); i++) means[i] += weights[start + i];
        for (int64_t t = 0; t < taps; t++) {
            double mean = 0;
            for (int64_t i = t; i < row; i += taps) mean += means[i] / channels;
            for (int64_t i = t; i < row; i += taps) shifts[i] = static_cast<float>(mean);
        }
    }
    for (int64_t start = 0; start < n; start += row)
        for (int64_t i = 0; i < std::min(row, n - start); i++)
            weights[start + i] = clamp(weights[start + i] - shifts[i]);
}

// Add the number of weights in each bin to counts and the sum of their places, counted from 0, to sums.
void tally(const uint32_t* place_of, int64_t count, int bins, double* counts, double* sums) {
    constexpr int64_t MOST = 1 << 16;   // more might overflow: a place is less than 2^24
    for (int64_t start = 0; start < count; start += MOST) {
        uint64_t words[4][MOST_BINS] = {};  // count above sum, so that one addition does; four, that it need not wait
        const auto add = [&](int copy, uint64_t place) {
            words[copy][place >> PLACE_BITS] += (uint64_t{1} << (64 - COUNT_BITS)) + place;
        };
        int64_t i = start;
        const int64_t end = std::min(count, start + MOST);
        for (; i + 4 <= end; i += 4) {
            add(0, place_of[i]), add(1, place_of[i + 1]), add(2, place_of[i + 2]), add(3, place_of[i + 3]);
        }
        for (; i < end; i++) add(0, place_of[i]);
        for (int b = 0; b < bins; b++) {
            const uint64_t word = words[0][b] + words[1][b] + words[2][b] + words[3][b];
            counts[b] += word >> (64 - COUNT_BITS);
            sums[b] += word & ((uint64_t{1} << (64 - COUNT_BITS)) - 1);
        }
    }
}

inline void consider(Best& best, double marked, double sum, double value) {
    if (value > best.value && marked > 0 && marked < best.n)
        best.value = value, best.marked = marked, best.sum = sum;
}

// The boundary of the partition with the largest J, found exactly without sorting the filter.
//
// A histogram of counts and sums bounds J at every edge between two bins: the sums are of rounded
// places. Inside a bin, the points (K, S) of all further candidates lie in a triangle: the edges of the
// bin bound how S grows with K. J is convex in (K, S), so its value at the apex bounds them, and the
// search goes on, in the same way, only between the first and the last bin that can have, inside or at
// an edge, a larger J than the best edge has at least. Few weights are sorted, and theirs is exact.
float best_boundary(const float* w, int64_t n, Range ends, double total, Scratch& scratch) {
    Best best{static_cast<double>(n), total};
    auto& place_of = scratch.place_of;
    auto& near = scratch.near;
    place_of.resize(n);
    near.resize(n + 16);
    double marked = 0, sum = 0;     // of the weights above those that are searched
    for (int64_t count = n, before = 2 * n;;) {
        const int bins = std::clamp<int>(count / 16, 8, MOST_BINS);
        const float low = ends.low, scale = bins / (ends.high - low) * (1 << PLACE_BITS);
        if (count <= FEW || count > before / 2 || !std::isfinite(scale)) {
            if (w != near.data()) std::copy_n(w, count, near.begin());
            std::sort(near.begin(), near.begin() + count, std::greater<float>());
            if (marked > 0) consider(best, marked, sum, objective(marked, sum, n, total));
            for (int64_t i = 0; i < count; i++) {
                marked++, sum += near[i];
                if (marked < n) consider(best, marked, sum, objective(marked, sum, n, total));
            }
            break;
        }
        double sums[MOST_BINS] = {}, counts[MOST_BINS] = {};
        double above[MOST_BINS + 1], above_sum[MOST_BINS + 1], at_edge[MOST_BINS + 1], value[MOST_BINS];
        const uint32_t highest = (bins << PLACE_BITS) - 1;
        for (int64_t i = 0; i < count; i++)
            place_of[i] = std::min(static_cast<uint32_t>(static_cast<int32_t>((w[i] - low) * scale)), highest);
        tally(place_of.data(), count, bins, counts, sums);
        for (int b = 0; b < bins; b++) sums[b] = counts[b] * low + (sums[b] + counts[b] / 2) / scale;
        above[bins] = marked, above_sum[bins] = sum;
        for (int b = bins - 1; b >= 0; b--) {
            above[b] = above[b + 1] + counts[b];
            above_sum[b] = above_sum[b + 1] + sums[b];
        }
        const double width = (static_cast<double>(ends.high) - low) / bins;
        const double slack = 1e-3 * width;      // more than what rounding can move a weight out of its bin
        const double unit = 2 * width / (1 << PLACE_BITS);      // more than that moves its place
        for (int b = 0; b < bins; b++) {
            const double inner = std::min(std::max(above[b], 0.5), n - 0.5), error = unit * (above[b] - marked);
            consider(best, above[b], above_sum[b], objective(inner, above_sum[b], n, total, -error));
            at_edge[b] = objective(inner, above_sum[b], n, total, error);
        }
        at_edge[bins] = marked > 0 ? objective(marked, sum, n, total) : 0;
        for (int b = 0; b < bins; b++) {
            const double bottom = low + b * width - slack, rise = width + 2 * slack;
            const double inside = (sums[b] - counts[b] * bottom) / rise;
            const double apex = std::min(std::max(above[b + 1] + inside, 0.5), n - 0.5);
            const double most = counts[b] > 1 ? objective(apex, above_sum[b + 1] + inside * (bottom + rise), n, total,
                                                          unit * (above[b] - marked)) : 0;
            value[b] = std::max({most, at_edge[b], at_edge[b + 1]});
        }
        int first = bins, last = -1;
        for (int b = 0; b < bins; b++)
            if (value[b] > best.value) first = std::min(first, b), last = b;
        if (last < 0) break;

        const uint32_t end = (last + 1) << PLACE_BITS;
        marked = above[last + 1];
#pragma omp simd reduction(+:sum)
        for (int64_t i = 0; i < count; i++) sum += place_of[i] >= end ? w[i] : 0.0f;
        before = count;
        count = keep(w, place_of.data(), count, first << PLACE_BITS, end - 1, near.data());
        w = near.data();
        ends = range(w, count);
    }
    // At the optimum every weight takes the nearer value. Rounded down: no weight lies between.
    const double middle = (best.sum / best.marked + (total - best.sum) / (n - best.marked)) / 2;
    const float boundary = static_cast<float>(middle);
    return boundary > middle ? std::nextafter(boundary, -1.0f) : boundary;
}

}  // namespace

extern "C" {

// weights (filters, channels, taps) are projected in place; two_valued gets W~. For each filter,
// alpha, beta, boundary and the count `marked` of weights above the boundary, which become alpha.
void dab_forward(float* weights, float* two_valued, float* alpha, float* beta, float* boundary,
                 float* marked, int64_t filters, int64_t channels, int64_t taps, int threads) {
    const int64_t n = channels * taps;
    in_threads(filters, 1, threads, [=](int64_t begin, int64_t end) {
        Scratch scratch;
        for (int64_t f = begin; f < end; f++) {
            float* w = weights + f * n;
            project(w, channels, taps, scratch);
            double total = 0;
#pragma omp simd reduction(+:total)
            for (int64_t i = 0; i < n; i++) total += w[i];
            const auto [low, high] = std::isnan(total) ? Range{NAN, NAN} : range(w, n);
            float threshold = high;
            if (low < high) {
                threshold = best_boundary(w, n, {low, high}, total, scratch);
                if (!(threshold < high)) threshold = std::nextafter(high, low);
                if (threshold < low) threshold = low;
            }
            double above = 0;
            int64_t count = 0;
#pragma omp simd reduction(+:above, count)
            for (int64_t i = 0; i < n; i++) {
                above += w[i] > threshold ? w[i] : 0.0f;
                count += w[i] > threshold;
            }
            // A constant filter has nothing above its boundary; it stays what it is.
            const bool constant = count == 0;
            alpha[f] = constant ? high : static_cast<float>(above / count);
            beta[f] = constant ? high : static_cast<float>((total - above) / (n - count));
            boundary[f] = threshold;
            marked[f] = static_cast<float>(constant ? 1 : count);
            const float a = alpha[f], b = beta[f];
            float* out = two_valued + f * n;
            for (int64_t i = 0; i < n; i++) out[i] = w[i] > threshold ? a : b;
        }
    });
}

// The gradient of the latent weights out of that of W~, both (filters, channels, taps).
void dab_backward(const float* gradient, const float* weights, const float* alpha, const float* beta,
                  const float* boundary, const float* marked, float* latent_gradient,
                  int64_t filters, int64_t channels, int64_t taps, int threads) {
    const int64_t n = channels * taps;
    const float s = channels > 1 ? 1 - 1.0f / channels : 1;
    in_threads(filters, 1, threads, [=](int64_t begin, int64_t end) {
        for (int64_t f = begin; f < end; f++) {
            const float *g = gradient + f * n, *w = weights + f * n;
            float* out = latent_gradient + f * n;
            const float threshold = boundary[f], share_above = s / marked[f], share_below = s / (n - marked[f]);
            const float above = s * std::fabs(alpha[f]), below = s * std::fabs(beta[f]);
            for (int64_t i = 0; i < n; i++) {
                const bool is_above = w[i] > threshold;
                const float slope = std::fabs(w[i]) < 1 ? (is_above ? above : below) : 0.0f;
                out[i] = g[i] * (slope + (is_above ? share_above : share_below));
            }
        }
    });
}

}
