// Packing signs: bit c of a pixel is (x[c] >= threshold[c]) != flip[c]. And bits of filters back to weights.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

// Compiled with the instruction set of the calling function.
#define INLINED inline __attribute__((always_inline))

namespace {

struct Packing {
    const float* x;
    const float* threshold;
    const uint64_t* flips;    // as words
    uint64_t* bits;
    int64_t channels, words, pixels;    // pixels of one image
};

INLINED uint64_t signs_one_by_one(const float* x, int64_t stride, const float* threshold, int64_t count) {
    uint64_t word = 0;
    for (int64_t c = 0; c < count; c++) word |= static_cast<uint64_t>(x[c * stride] >= threshold[c]) << c;
    return word;
}

// Pack pixels begin … end − 1, counted over all images, in channels_last memory.
template <class Signs>
INLINED void pack_pixels(const Packing& p, int64_t begin, int64_t end, Signs signs) {
    for (int64_t pixel = begin; pixel < end; pixel++)
        for (int64_t w = 0; w < p.words; w++)
            p.bits[pixel * p.words + w] = p.flips[w] ^ signs(p.x + pixel * p.channels + w * 64, p.threshold + w * 64,
                                                             std::min<int64_t>(64, p.channels - w * 64));
}

// Of 32 bytes, as in AVX2: GCC compares those that are wider than the processor's one number after another.
typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(32), aligned(4), may_alias));
// In floats: a vector, and the distance between what is read and what is prefetched.
constexpr int64_t LANES = 8, AHEAD = 2048;

// Pack VECTORS·LANES adjacent pixels of one image in contiguous memory: 32 channels at a time, one
// pixel per lane.
template <int VECTORS>
INLINED void pack_lanes(const Packing& p, const float* x, uint64_t* bits) {
    for (int64_t w = 0; w < p.words; w++) {
        uint32_t halves[2][VECTORS * LANES] = {};
        for (int half = 0; half < 2; half++) {
            const int64_t first = w * 64 + half * 32, last = std::min(first + 32, p.channels);
            Ints found[VECTORS] = {};
            for (int64_t c = first; c < last; c++) {
                const Floats threshold = p.threshold[c] - Floats{};
                const Ints bit = static_cast<int32_t>(1u << (c - first)) - Ints{};
                const float* plane = x + c * p.pixels;
                for (int v = 0; v < VECTORS; v++) {
                    __builtin_prefetch(plane + (VECTORS + v) * LANES);
                    found[v] |= (*reinterpret_cast<const Floats*>(plane + v * LANES) >= threshold) & bit;
                }
            }
            std::memcpy(halves[half], found, sizeof found);
        }
        for (int64_t i = 0; i < VECTORS * LANES; i++)
            bits[i * p.words + w] = p.flips[w] ^ (halves[0][i] | static_cast<uint64_t>(halves[1][i]) << 32);
    }
}

struct Side {    // of a pooled image
    int64_t size, kernel, stride, pad, outputs;
};

struct Pooling {
    Side y, x;
    const uint64_t* bits;     // (images, y.size, x.size, words)
    const uint64_t* flips;    // as words
    uint64_t* out;            // (images, y.outputs, x.outputs, words)
    int64_t words;
};

// Pool rows begin … end − 1 of the outputs, counted over all images. A bit, before its flip, says whether a value reaches
// a threshold: the largest value of a window does if one of them does.
INLINED void pool_rows(const Pooling& p, int64_t begin, int64_t end) {
    uint64_t* out = p.out + begin * p.x.outputs * p.words;
    for (int64_t row = begin; row < end; row++) {
        const uint64_t* image = p.bits + row / p.y.outputs * p.y.size * p.x.size * p.words;
        const int64_t y = row % p.y.outputs * p.y.stride - p.y.pad;
        const int64_t top = std::max<int64_t>(y, 0), bottom = std::min(y + p.y.kernel, p.y.size);
        for (int64_t x = -p.x.pad; x < p.x.outputs * p.x.stride - p.x.pad; x += p.x.stride)
            for (int64_t w = 0; w < p.words; w++) {
                uint64_t reached = 0;
                for (int64_t i = top; i < bottom; i++)
                    for (int64_t j = std::max<int64_t>(x, 0); j < std::min(x + p.x.kernel, p.x.size); j++)
                        reached |= image[(i * p.x.size + j) * p.words + w] ^ p.flips[w];
                *out++ = reached ^ p.flips[w];
            }
    }
}

struct Expansion {    // of bits to weights, alpha where a bit is set, else beta
    const uint64_t* words;    // (filters, taps, ceil(channels / 64))
    const float* alpha;
    const float* beta;
    float* weights;    // (filters, channels, taps)
    int64_t channels, taps;
};

// Expand filters begin … end − 1.
INLINED void expand_filters(const Expansion& e, int64_t begin, int64_t end) {
    const Ints bit = {1, 2, 4, 8, 16, 32, 64, 128};
    const uint64_t* word = e.words + begin * e.taps * ((e.channels + 63) / 64);
    alignas(64) float lanes[64];
    for (int64_t f = begin; f < end; f++) {
        const Ints alpha = std::bit_cast<int32_t>(e.alpha[f]) - Ints{};
        const Ints beta = std::bit_cast<int32_t>(e.beta[f]) - Ints{};
        for (int64_t tap = 0; tap < e.taps; tap++)
            for (int64_t first = 0; first < e.channels; first += 64, word++) {
                for (int64_t c = 0; c < 64; c += LANES) {
                    const Ints there = static_cast<int32_t>(*word >> c & 0xff) - Ints{};
                    const Ints unset = ((there & bit) - bit) >> 31;
                    *reinterpret_cast<Ints*>(lanes + c) = alpha ^ (unset & (alpha ^ beta));
                }
                float* weights = e.weights + (f * e.channels + first) * e.taps + tap;
                const int64_t count = std::min<int64_t>(64, e.channels - first);
                if (e.taps == 1) std::memcpy(weights, lanes, count * sizeof *weights);
                else for (int64_t c = 0; c < count; c++) weights[c * e.taps] = lanes[c];
            }
    }
}

// Pack pixels begin … end − 1 of one image in contiguous memory.
INLINED void pack_planes(const Packing& p, int64_t image, int64_t begin, int64_t end) {
    const float* x = p.x + image * p.channels * p.pixels;
    uint64_t* bits = p.bits + image * p.pixels * p.words;
    int64_t pixel = begin;
    for (; pixel + 4 * LANES <= end; pixel += 4 * LANES) pack_lanes<4>(p, x + pixel, bits + pixel * p.words);
    for (; pixel + LANES <= end; pixel += LANES) pack_lanes<1>(p, x + pixel, bits + pixel * p.words);
    for (; pixel < end; pixel++)
        for (int64_t w = 0; w < p.words; w++)
            bits[pixel * p.words + w] = p.flips[w] ^ signs_one_by_one(
                x + w * 64 * p.pixels + pixel, p.pixels, p.threshold + w * 64,
                std::min<int64_t>(64, p.channels - w * 64));
}

}  // namespace
