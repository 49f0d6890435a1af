// A convolution of signs with two-valued filters: everything except the counting of bits.
#pragma once
#include <limits>
#include <vector>

#include "signs.h"

namespace {

constexpr int64_t FILTERS = 32;    // side by side in the prepared words
// Output positions computed with one group of filters before the next: about TILE of them.
constexpr int64_t TILE = 48, MOST_TILE = 96;

struct Position {          // of the output
    const uint64_t* bits;  // the first pixel of its window in the padded image
    double sum;            // Σx
    int64_t window;        // index of the set of taps inside the image
};

struct Taps {    // of a kernel that lie inside the image, along one axis
    int64_t first, last;
    bool operator==(const Taps& other) const { return first == other.first && last == other.last; }
};

struct Axis {
    int64_t size, kernel, stride, pad, padded, outputs;
    std::vector<Taps> windows;         // the distinct sets of taps inside the image
    std::vector<int32_t> window_of;    // each output: index into windows
};

Axis axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    Axis axis = {size, kernel, stride, pad, size + 2 * pad, (size + 2 * pad - kernel) / stride + 1, {}, {}};
    for (int64_t i = 0; i < axis.outputs; i++) {
        const int64_t start = i * stride - pad;
        const Taps taps = {std::clamp<int64_t>(-start, 0, kernel), std::clamp<int64_t>(size - start, 0, kernel)};
        if (axis.windows.empty() || !(axis.windows.back() == taps)) axis.windows.push_back(taps);
        axis.window_of.push_back(static_cast<int32_t>(axis.windows.size() - 1));
    }
    return axis;
}

struct alignas(64) Lanes {    // one number per filter of a group
    double of[FILTERS];
};

struct Convolution {
    Axis y, x;
    int64_t images, channels, words, filters, groups;
    int64_t all, tiles, tile;    // output positions, tiles of them, positions per tile
    const uint64_t* image;       // (N, y.size, x.size, words)
    const uint64_t* prepared;    // (groups, taps·words + taps, FILTERS)
    const float* alpha;
    const float* beta;
    std::vector<uint64_t> copy;          // of the image, if there is padding
    uint64_t* padded;                    // (N, y.padded, x.padded, words)
    std::vector<int64_t> offsets;        // (taps·words): of each word of a window from the first
    std::vector<int32_t> sums;           // (N, y.padded, x.padded): Σx of the window starting here
    std::vector<Lanes> slope, shared;    // (groups): 2(α − β), β
    std::vector<Lanes> constant;         // (groups, windows): −(α − β)K
    float* out;
    const float* shortcut;    // of the shape of out, added to it before the ReLU; or null
    float lowest;             // of what run() computes: 0 where a ReLU comes next
    bool relu;

    int64_t windows() const { return y.windows.size() * x.windows.size(); }
    const uint64_t* of_group(int64_t group) const {
        return prepared + group * y.kernel * x.kernel * (words + 1) * FILTERS;
    }
};

// A convolution of which the sizes are known, with room for all that is computed.
Convolution plan(const Axis& y, const Axis& x, int64_t images, int64_t channels, int64_t filters, bool relu,
                 const uint64_t* image, const float* shortcut = nullptr) {
    Convolution c;
    c.y = y, c.x = x, c.image = image;
    c.images = images, c.channels = channels, c.words = (channels + 63) / 64;
    c.filters = filters, c.groups = (filters + FILTERS - 1) / FILTERS;
    c.shortcut = shortcut, c.relu = relu;
    c.lowest = relu && !shortcut ? 0 : -std::numeric_limits<float>::infinity();
    c.sums.resize(images * y.padded * x.padded);
    const bool pads = y.pad || x.pad;
    c.copy.resize(pads ? c.sums.size() * c.words : 0);
    c.padded = pads ? c.copy.data() : const_cast<uint64_t*>(image);
    for (auto& window : c.y.window_of) window *= static_cast<int32_t>(x.windows.size());
    c.slope.resize(c.groups), c.shared.resize(c.groups), c.constant.resize(c.groups * c.windows());
    c.all = images * y.outputs * x.outputs;
    const int64_t tiles = std::max<int64_t>(1, (c.all + TILE / 2) / TILE);
    c.tile = ((std::max<int64_t>(1, c.all) + tiles - 1) / tiles + 5) / 6 * 6;    // whole blocks of Avx512
    c.tiles = (c.all + c.tile - 1) / c.tile;
    for (int64_t i = 0; i < y.kernel; i++)
        for (int64_t k = 0; k < x.kernel * c.words; k++) c.offsets.push_back(i * x.padded * c.words + k);
    return c;
}

// Fill slope, shared and constant of one group of filters.
INLINED void tabulate(Convolution& c, int64_t group) {
    Lanes& slope = c.slope[group];
    Lanes& shared = c.shared[group];
    Lanes* constant = c.constant.data() + group * c.windows();
    for (int64_t f = 0; f < std::min(FILTERS, c.filters - group * FILTERS); f++) {
        shared.of[f] = c.beta[group * FILTERS + f];
        slope.of[f] = 2 * (c.alpha[group * FILTERS + f] - shared.of[f]);
    }
    // K of each tap
    const uint64_t* marked = c.of_group(group) + c.y.kernel * c.x.kernel * c.words * FILTERS;
    for (const Taps& rows : c.y.windows)
        for (const Taps& columns : c.x.windows) {
            int64_t inside[FILTERS] = {};
            for (int64_t i = rows.first; i < rows.last; i++)
                for (int64_t j = columns.first; j < columns.last; j++)
                    for (int64_t f = 0; f < FILTERS; f++) inside[f] += marked[(i * c.x.kernel + j) * FILTERS + f];
            for (int64_t f = 0; f < FILTERS; f++) constant->of[f] = -0.5 * slope.of[f] * static_cast<double>(inside[f]);
            constant++;
        }
}

// Pad image n with zeros, and sum its signs over every window: 2·popcount − channels for a pixel
// inside the image, 0 outside.
INLINED void frame(Convolution& c, int64_t n) {
    const int64_t size = c.y.padded * c.x.padded;
    uint64_t* padded = c.padded + n * size * c.words;
    const uint64_t* image = c.image + n * c.y.size * c.x.size * c.words;
    std::vector<int32_t> pixels(size), across(size);
    for (int64_t y = 0; y < c.y.size; y++) {
        const uint64_t* row = image + y * c.x.size * c.words;
        const int64_t start = (y + c.y.pad) * c.x.padded + c.x.pad;
        if (padded != image) std::memcpy(padded + start * c.words, row, c.x.size * c.words * sizeof *row);
        for (int64_t x = 0; x < c.x.size; x++) {
            int64_t count = 0;
            for (int64_t w = 0; w < c.words; w++) count += __builtin_popcountll(row[x * c.words + w]);
            pixels[start + x] = static_cast<int32_t>(2 * count - c.channels);
        }
    }
    int32_t* sums = c.sums.data() + n * size;
    for (int64_t j = 0; j < c.x.kernel; j++)
        for (int64_t at = 0; at < size - j; at++) across[at] += pixels[at + j];
    for (int64_t i = 0; i < c.y.kernel; i++)
        for (int64_t at = 0; at < size - i * c.x.padded; at++) sums[at] += across[at + i * c.x.padded];
}

// Fill in the output positions first … first + count − 1, counted over all images.
INLINED void locate(const Convolution& c, int64_t first, int64_t count, Position* positions) {
    int64_t x = first % c.x.outputs, y = first / c.x.outputs % c.y.outputs, n = first / c.x.outputs / c.y.outputs;
    for (const Position* end = positions + count; positions < end; x = 0, y++) {
        if (y == c.y.outputs) y = 0, n++;
        const int64_t row = (n * c.y.padded + y * c.y.stride) * c.x.padded;
        const int32_t window = c.y.window_of[y];
        for (; x < c.x.outputs && positions < end; x++) {
            const int64_t at = row + x * c.x.stride;
            *positions++ = {c.padded + at * c.words, static_cast<double>(c.sums[at]), window + c.x.window_of[x]};
        }
    }
}

// Add the shortcut to so many filters of one position, then the ReLU.
INLINED void add_shortcut(const Convolution& c, float* __restrict out, const float* shortcut, int64_t filters) {
    const float lowest = c.relu ? 0 : -std::numeric_limits<float>::infinity();
    for (int64_t f = 0; f < filters; f++) {
        const float value = out[f] + shortcut[f];
        out[f] = value < lowest ? lowest : value;
    }
}

// Compute the items begin … end − 1 of tiles × groups. Kernel::run computes up to Kernel::most
// positions of FILTERS filters.
template <class Kernel>
INLINED void convolve(const Convolution& c, int64_t begin, int64_t end) {
    Position positions[MOST_TILE];
    float rows[Kernel::most * FILTERS];
    int64_t tile = -1, there = 0;
    for (int64_t item = begin; item < end; item++) {
        const int64_t group = item % c.groups;
        if (tile != item / c.groups) {
            tile = item / c.groups;
            there = std::min(c.tile, c.all - tile * c.tile);
            locate(c, tile * c.tile, there, positions);
        }
        const int64_t filters = std::min(FILTERS, c.filters - group * FILTERS);
        const bool whole = filters == FILTERS;
        for (int64_t p = 0; p < there; p += Kernel::most) {
            const int64_t number = std::min<int64_t>(Kernel::most, there - p);
            float* out = c.out + (tile * c.tile + p) * c.filters + group * FILTERS;
            Kernel::run(c, group, positions + p, number, whole ? out : rows, whole ? c.filters : FILTERS);
            for (int64_t i = 0; i < (whole ? 0 : number); i++)
                std::memcpy(out + i * c.filters, rows + i * FILTERS, filters * sizeof *out);
            for (int64_t i = 0; i < (c.shortcut ? number : 0); i++)
                add_shortcut(c, out + i * c.filters, c.shortcut + (out - c.out) + i * c.filters, filters);
        }
    }
}

// out = (α − β)(2·count − K) + β·Σx, computed in double and rounded to float.
INLINED void finish(const Convolution& c, int64_t group, const Position& position, const int64_t* count, float* out) {
    const double* slope = c.slope[group].of;
    const double* shared = c.shared[group].of;
    const double* constant = c.constant[group * c.windows() + position.window].of;
    const double sum = position.sum;
    const float lowest = c.lowest;
    for (int64_t f = 0; f < FILTERS; f++) {
        const float value = static_cast<float>(slope[f] * static_cast<double>(count[f]) +
                                               (shared[f] * sum + constant[f]));
        out[f] = value < lowest ? lowest : value;
    }
}

}  // namespace
