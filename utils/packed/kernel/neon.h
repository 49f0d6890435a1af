// The kernel for 64-bit Arm processors, all of which have NEON.
#pragma once
#include <arm_neon.h>

#include "portable.h"

namespace {

struct Neon {
    static constexpr int64_t most = 1;    // a core loads a vector of filters in the time of its AND, count and add

    static void run(const Convolution& c, int64_t group, const Position* position, int64_t, float* out, int64_t) {
        constexpr int VECTORS = FILTERS / 2;
        const uint64_t* filters = c.of_group(group);
        const int64_t words = c.offsets.size();
        uint64_t count[FILTERS] = {};
        for (int64_t first = 0; first < words; first += BYTE_WORDS) {
            uint8x16_t bytes[VECTORS] = {};
            const int64_t* offset = c.offsets.data() + first;
            const int64_t* end = c.offsets.data() + std::min(first + BYTE_WORDS, words);
            do {
                const uint64x2_t x = vld1q_dup_u64(position->bits + *offset);
#pragma GCC unroll 16
                for (int v = 0; v < VECTORS; v++) {
                    const uint64x2_t both = vandq_u64(x, vld1q_u64(filters + 2 * v));
                    bytes[v] = vaddq_u8(bytes[v], vcntq_u8(vreinterpretq_u8_u64(both)));
                }
                filters += FILTERS;
            } while (++offset < end);
#pragma GCC unroll 16
            for (int v = 0; v < VECTORS; v++) {
                const uint32x4_t quads = vpaddlq_u16(vpaddlq_u8(bytes[v]));
                vst1q_u64(count + 2 * v, vpadalq_u32(vld1q_u64(count + 2 * v), quads));
            }
        }
        finish(c, group, *position, reinterpret_cast<const int64_t*>(count), out);
    }

    static uint64_t signs(const float* x, const float* threshold, int64_t count) {
        constexpr uint8_t BITS[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const auto pair = [&](int64_t c) {    // of vectors of comparisons, 16 bits each
            const uint32x4_t low = vcgeq_f32(vld1q_f32(x + c), vld1q_f32(threshold + c));
            const uint32x4_t high = vcgeq_f32(vld1q_f32(x + c + 4), vld1q_f32(threshold + c + 4));
            return vuzp1q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high));
        };
        uint64_t word = 0;
        int64_t c = 0;
        for (; c + 16 <= count; c += 16) {
            const uint8x16_t found = vuzp1q_u8(vreinterpretq_u8_u16(pair(c)), vreinterpretq_u8_u16(pair(c + 8)));
            uint8x16_t bits = vandq_u8(found, vld1q_u8(BITS));
            for (int step = 0; step < 3; step++) bits = vpaddq_u8(bits, bits);
            word |= static_cast<uint64_t>(vgetq_lane_u16(vreinterpretq_u16_u8(bits), 0)) << c;
        }
        return c == count ? word : word | signs_one_by_one(x + c, 1, threshold + c, count - c) << c;
    }
};
ENTRY_POINTS(, Neon)

}  // namespace
