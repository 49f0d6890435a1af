// Distribution-aware binarization of one layer on the CPU: project, split, write, scale the gradient.
// Formulas and source: utils/binarize.py, which has the same in PyTorch. One thread per filter, one
// filter at a time in its cache; built and called by utils/native/cpu.py.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>
#endif

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

// n·(J − total²/n) of `marked` weights that sum to `sum`, of n weights that sum to `total`.
inline double objective(double marked, double sum, double n, double total) {
    const double excess = n * sum - marked * total;
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

struct Range {
    float low, high;
};

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;    // wider ones would be taken apart, slowly
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// The least and the largest of w, count >= 1.
Range range(const float* w, int64_t count) {
    Lanes low = w[0] - Lanes{}, high = low;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const Lanes x = *reinterpret_cast<const Lanes*>(w + i);
        low = x < low ? x : low;
        high = x > high ? x : high;
    }
    Range all = {w[0], w[0]};
    for (int lane = 0; lane < LANES; lane++) all = {std::min(all.low, low[lane]), std::max(all.high, high[lane])};
    for (; i < count; i++) all = {std::min(all.low, w[i]), std::max(all.high, w[i])};
    return all;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For every mask of 8 lanes the numbers of the lanes in it, a byte each from the lowest.
constexpr auto LANES_IN = [] {
    std::array<uint64_t, 256> table{};
    for (int mask = 0; mask < 256; mask++)
        for (int lane = 7; lane >= 0; lane--)
            if (mask >> lane & 1) table[mask] = table[mask] << 8 | lane;
    return table;
}();
#endif

// The weights at a place from first to last, moved to the front of `to`, which may be w and holds 16 more.
int64_t keep(const float* w, const uint32_t* place_of, int64_t count, uint32_t first, uint32_t last, float* to) {
    int64_t kept = 0, i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= count; i += 16) {
        const __m512i above_first = _mm512_sub_epi32(_mm512_loadu_si512(place_of + i), _mm512_set1_epi32(first));
        const __mmask16 inside = _mm512_cmple_epu32_mask(above_first, _mm512_set1_epi32(last - first));
        _mm512_storeu_ps(to + kept, _mm512_maskz_compress_ps(inside, _mm512_loadu_ps(w + i)));
        kept += __builtin_popcount(inside);
    }
#elif defined(__AVX2__)
    for (; i + 8 <= count; i += 8) {
        const __m256i place = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place_of + i));
        const __m256i above_first = _mm256_sub_epi32(place, _mm256_set1_epi32(first)), most = _mm256_set1_epi32(last - first);
        const __m256i is_inside = _mm256_cmpeq_epi32(_mm256_min_epu32(above_first, most), above_first);
        const int inside = _mm256_movemask_ps(_mm256_castsi256_ps(is_inside));
        const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES_IN[inside]));
        _mm256_storeu_ps(to + kept, _mm256_permutevar8x32_ps(_mm256_loadu_ps(w + i), order));
        kept += __builtin_popcount(inside);
    }
#endif
    for (; i < count; i++) {
        to[kept] = w[i];
        kept += place_of[i] - first <= last - first;
    }
    return kept;
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
// A histogram of counts and sums gives J at every edge between two bins. Inside a bin, the points
// (K, S) of all further candidates lie in a triangle: the edges of the bin bound how S grows with K.
// J is convex in (K, S), so its value at the apex bounds them, and the search goes on, in the same
// way, only between the first and the last bin whose bound exceeds the best edge.
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
            for (int64_t i = 0; i < count; i++) {
                marked++, sum += near[i];
                if (marked < n) consider(best, marked, sum, objective(marked, sum, n, total));
            }
            break;
        }
        double sums[MOST_BINS] = {}, counts[MOST_BINS] = {};
        double above[MOST_BINS + 1], above_sum[MOST_BINS + 1], value[MOST_BINS];
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
        for (int b = 0; b < bins; b++)
            value[b] = objective(std::min(std::max(above[b], 0.5), n - 0.5), above_sum[b], n, total);
        for (int b = 0; b < bins; b++) consider(best, above[b], above_sum[b], value[b]);

        const double width = (static_cast<double>(ends.high) - low) / bins;
        const double slack = 1e-3 * width;      // more than what rounding can move a weight out of its bin
        for (int b = 0; b < bins; b++) {
            const double bottom = low + b * width - slack, rise = width + 2 * slack;
            const double inside = (sums[b] - counts[b] * bottom) / rise;
            const double apex = std::min(std::max(above[b + 1] + inside, 0.5), n - 0.5);
            value[b] = objective(apex, above_sum[b + 1] + inside * (bottom + rise), n, total);
        }
        int first = bins, last = -1;
        for (int b = 0; b < bins; b++)
            if (counts[b] > 1 && value[b] > best.value) first = std::min(first, b), last = b;
        if (last < 0) break;

        marked = above[last + 1], sum = above_sum[last + 1];
        before = count;
        count = keep(w, place_of.data(), count, first << PLACE_BITS, ((last + 1) << PLACE_BITS) - 1, near.data());
        w = near.data();
        ends = range(w, count);
    }
    // At the optimum every weight takes the nearer value.
    return static_cast<float>((best.sum / best.marked + (total - best.sum) / (n - best.marked)) / 2);
}

}  // namespace

extern "C" {

// weights (filters, channels, taps) are projected in place; two_valued gets W~. For each filter,
// alpha, beta, boundary and the count `marked` of weights above the boundary, which become alpha.
void dab_forward(float* weights, float* two_valued, float* alpha, float* beta, float* boundary,
                 float* marked, int64_t filters, int64_t channels, int64_t taps, int threads) {
    const int64_t n = channels * taps;
#pragma omp parallel num_threads(threads)
    {
        Scratch scratch;
#pragma omp for schedule(static)
        for (int64_t f = 0; f < filters; f++) {
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
    }
}

// The gradient of the latent weights out of that of W~, both (filters, channels, taps).
void dab_backward(const float* gradient, const float* weights, const float* alpha, const float* beta,
                  const float* boundary, const float* marked, float* latent_gradient,
                  int64_t filters, int64_t channels, int64_t taps, int threads) {
    const int64_t n = channels * taps;
    const float s = channels > 1 ? 1 - 1.0f / channels : 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t f = 0; f < filters; f++) {
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
}

}
