// Distribution-aware binarization of one layer on the CPU: project, split, write, scale the gradient.
// Formulas and source: utils/binarize.py, which has the same in PyTorch. One thread per filter, one
// filter at a time in its cache; built and called by utils/native.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

constexpr int MOST_BINS = 512;

struct Bin {
    double sum;
    int64_t count;
};

struct Scratch {
    std::vector<uint16_t> bin_of;
    std::vector<float> near;
    std::vector<double> means;
};

// n·(J − total²/n) of `marked` weights that sum to `sum`, of n weights that sum to `total`.
inline double objective(double marked, double sum, double n, double total) {
    const double excess = n * sum - marked * total;
    return excess * excess / (marked * (n - marked));
}

inline float clamp(float weight) { return std::min(std::max(weight, -1.0f), 1.0f); }

// Centre each tap over the channels (more than one), clamp to [-1, 1]: weights are (channels, taps).
void project(float* weights, int64_t channels, int64_t taps, Scratch& scratch) {
    if (taps == 1) {    // the loops below, the other way around: a vector instead of single weights
        double mean = 0;
#pragma omp simd reduction(+:mean)
        for (int64_t c = 0; c < channels; c++) mean += weights[c];
        const float shift = channels > 1 ? static_cast<float>(mean / channels) : 0;
        for (int64_t c = 0; c < channels; c++) weights[c] = clamp(weights[c] - shift);
        return;
    }
    auto& means = scratch.means;
    means.assign(taps, 0.0);
    if (channels > 1) {
        for (int64_t c = 0; c < channels; c++)
            for (int64_t t = 0; t < taps; t++) means[t] += weights[c * taps + t];
        for (auto& mean : means) mean /= channels;
    }
    for (int64_t c = 0; c < channels; c++)
        for (int64_t t = 0; t < taps; t++)
            weights[c * taps + t] = clamp(weights[c * taps + t] - static_cast<float>(means[t]));
}

// The boundary of the partition with the largest J, found exactly without sorting the filter.
//
// A histogram of counts and sums gives J at every edge between two bins. Inside a bin, the points
// (K, S) of all further candidates lie in a triangle: the edges of the bin bound how S grows with K.
// J is convex in (K, S), so its value at the apex bounds them, and only the bins whose bound exceeds
// the best edge are sorted.
float best_boundary(const float* w, int64_t n, float low, float high, Scratch& scratch) {
    const int bins_used = std::clamp<int>(n / 16, 16, MOST_BINS);
    Bin bins[MOST_BINS];
    std::fill_n(bins, bins_used, Bin{});
    const float scale = bins_used / (high - low);
    const double width = (static_cast<double>(high) - low) / bins_used;
    const double slack = 1e-3 * width;      // more than what rounding can move a weight out of its bin
    if (!std::isfinite(scale)) return low + (high - low) / 2;
    auto& bin_of = scratch.bin_of;
    bin_of.resize(n);
    for (int64_t i = 0; i < n; i++) {
        int bin = static_cast<int>((w[i] - low) * scale);
        bin_of[i] = static_cast<uint16_t>(bin < bins_used ? bin : bins_used - 1);
    }
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        Bin& bin = bins[bin_of[i]];
        bin.sum += w[i];
        bin.count++;
        total += w[i];
    }

    double best = -1, best_marked = 1, best_sum = high;
    double marked = 0, sum = 0;
    for (int b = bins_used - 1; b > 0; b--) {
        marked += bins[b].count;
        sum += bins[b].sum;
        if (bins[b].count == 0 || marked >= n) continue;
        const double value = objective(marked, sum, n, total);
        if (value > best) best = value, best_marked = marked, best_sum = sum;
    }

    bool is_near[MOST_BINS] = {};
    bool any = false;
    marked = sum = 0;
    for (int b = bins_used - 1; b >= 0; b--) {
        const Bin& bin = bins[b];
        if (bin.count > 1) {
            const double bottom = low + b * width - slack, rise = width + 2 * slack;
            const double inside = (bin.sum - bin.count * bottom) / rise;
            const double apex = std::min(std::max(marked + inside, 0.5), n - 0.5);
            is_near[b] = objective(apex, sum + inside * (bottom + rise), n, total) > best;
            any |= is_near[b];
        }
        marked += bin.count;
        sum += bin.sum;
    }

    if (any) {
        auto& near = scratch.near;
        near.resize(n + 1);
        int64_t count = 0;
        for (int64_t i = 0; i < n; i++) {
            near[count] = w[i];
            count += is_near[bin_of[i]];
        }
        std::sort(near.begin(), near.begin() + count, std::greater<float>());
        marked = sum = 0;
        auto next = near.begin();
        for (int b = bins_used - 1; b >= 0; b--) {
            if (!is_near[b]) {
                marked += bins[b].count;
                sum += bins[b].sum;
                continue;
            }
            for (int64_t i = 0; i < bins[b].count; i++, next++) {
                marked++;
                sum += *next;
                if (marked >= n) break;
                const double value = objective(marked, sum, n, total);
                if (value > best) best = value, best_marked = marked, best_sum = sum;
            }
        }
    }
    // At the optimum every weight takes the nearer value.
    return static_cast<float>((best_sum / best_marked + (total - best_sum) / (n - best_marked)) / 2);
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
            float low = w[0], high = w[0];
            bool is_nan = false;
#pragma omp simd reduction(min:low) reduction(max:high) reduction(|:is_nan)
            for (int64_t i = 0; i < n; i++) {
                low = std::min(low, w[i]);
                high = std::max(high, w[i]);
                is_nan |= w[i] != w[i];
            }
            float threshold = high;
            if (is_nan) {
                low = high = NAN;
            } else if (low < high) {
                threshold = best_boundary(w, n, low, high, scratch);
                if (!(threshold < high)) threshold = std::nextafter(high, low);
                if (threshold < low) threshold = low;
            }
            double above = 0, below = 0;
            int64_t count = 0;
#pragma omp simd reduction(+:above, below, count)
            for (int64_t i = 0; i < n; i++) {
                const bool is_above = w[i] > threshold;
                above += is_above ? w[i] : 0.0f;
                below += is_above ? 0.0f : w[i];
                count += is_above;
            }
            // A constant filter has nothing above its boundary; it stays what it is.
            const bool constant = count == 0;
            alpha[f] = constant ? high : static_cast<float>(above / count);
            beta[f] = constant ? high : static_cast<float>(below / (n - count));
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
