// The kernel in C++ alone, and what the instruction sets have in common.
#pragma once
#include "convolution.h"

// The functions of an instruction set that instructions.h chooses from; what they inline is compiled with that set.
#define ENTRY_POINTS(TARGET, SET)                                                                 \
    struct SET##Functions {                                                                       \
        TARGET static void pixels(const Packing& p, int64_t begin, int64_t end) {                 \
            pack_pixels(p, begin, end, SET::signs);                                               \
        }                                                                                         \
        TARGET static void planes(const Packing& p, int64_t image, int64_t begin, int64_t end) {  \
            pack_planes(p, image, begin, end);                                                    \
        }                                                                                         \
        TARGET static void expand(const Expansion& e, int64_t begin, int64_t end) {               \
            expand_filters(e, begin, end);                                                        \
        }                                                                                         \
        TARGET static void tabulate(Convolution& c, int64_t group) { ::tabulate(c, group); }      \
        TARGET static void frame(Convolution& c, int64_t n) { ::frame(c, n); }                    \
        TARGET static void convolve(const Convolution& c, int64_t begin, int64_t end) {           \
            ::convolve<SET>(c, begin, end);                                                       \
        }                                                                                         \
    };

namespace {

constexpr int64_t BYTE_WORDS = 31;    // words whose popcounts, at most 8 per byte, fit a byte

struct Portable {
    static constexpr int64_t most = 1;

    static void run(const Convolution& c, int64_t group, const Position* position, int64_t, float* out, int64_t) {
        constexpr uint64_t ones = 0x5555555555555555, twos = 0x3333333333333333, fours = 0x0f0f0f0f0f0f0f0f;
        int64_t count[FILTERS] = {};
        const uint64_t* filters = c.of_group(group);
        const int64_t words = c.offsets.size();
        for (int64_t first = 0; first < words; first += BYTE_WORDS) {
            uint64_t bytes[FILTERS] = {};
            for (int64_t k = first; k < std::min(first + BYTE_WORDS, words); k++, filters += FILTERS)
                for (int64_t f = 0; f < FILTERS; f++) {
                    uint64_t v = position->bits[c.offsets[k]] & filters[f];
                    v -= v >> 1 & ones;
                    v = (v & twos) + (v >> 2 & twos);
                    bytes[f] += (v + (v >> 4)) & fours;
                }
            for (int64_t f = 0; f < FILTERS; f++)
                for (int shift = 0; shift < 64; shift += 8) count[f] += bytes[f] >> shift & 0xff;
        }
        finish(c, group, *position, count, out);
    }

    static uint64_t signs(const float* x, const float* threshold, int64_t count) {
        return signs_one_by_one(x, 1, threshold, count);
    }
};
ENTRY_POINTS(, Portable)

}  // namespace
