// The parts of the search that differ between processors, chosen when compiled.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

struct Range {
    float low, high;
};

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4;
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
#elif defined(__aarch64__)
// For every mask of 4 lanes the numbers of the bytes in it, from the lowest.
constexpr auto BYTES_IN = [] {
    std::array<std::array<uint8_t, 16>, 16> table{};
    for (int mask = 0; mask < 16; mask++)
        for (int lane = 0, to = 0; lane < 4; lane++)
            for (int byte = 0; byte < 4 && (mask >> lane & 1); byte++) table[mask][to++] = 4 * lane + byte;
    return table;
}();
constexpr uint32_t LANE_AND_ONE[4] = {0x11, 0x12, 0x14, 0x18};    // summed up: a mask, and how many lanes are in it
#endif

// The weights at a place from first to last, moved to the front of `to`, which may be w and holds 16 more.
int64_t keep(const float* w, const uint32_t* place_of, int64_t count, uint32_t first, uint32_t last, float* to) {
    int64_t kept = 0, i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= count; i += 16) {
        const __m512i above_first = _mm512_sub_epi32(_mm512_loadu_si512(place_of + i), _mm512_set1_epi32(first));
        const __mmask16 inside = _mm512_cmple_epu32_mask(above_first, _mm512_set1_epi32(last - first));
        _mm512_storeu_ps(to + kept, _mm512_maskz_compress_ps(inside, _mm512_loadu_ps(w + i)));
        kept += __builtin_popcount(inside);
    }
#elif defined(__AVX2__)
    for (; i + 8 <= count; i += 8) {
        const __m256i place = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(place_of + i));
        const __m256i above_first = _mm256_sub_epi32(place, _mm256_set1_epi32(first));
        const __m256i most = _mm256_set1_epi32(last - first);
        const __m256i is_inside = _mm256_cmpeq_epi32(_mm256_min_epu32(above_first, most), above_first);
        const int inside = _mm256_movemask_ps(_mm256_castsi256_ps(is_inside));
        const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(LANES_IN[inside]));
        _mm256_storeu_ps(to + kept, _mm256_permutevar8x32_ps(_mm256_loadu_ps(w + i), order));
        kept += __builtin_popcount(inside);
    }
#elif defined(__aarch64__)
    for (; i + 4 <= count; i += 4) {
        const uint32x4_t above_first = vsubq_u32(vld1q_u32(place_of + i), vdupq_n_u32(first));
        const uint32x4_t is_inside = vcleq_u32(above_first, vdupq_n_u32(last - first));
        const uint32_t inside = vaddvq_u32(vandq_u32(is_inside, vld1q_u32(LANE_AND_ONE)));
        const uint8x16_t weights = vreinterpretq_u8_f32(vld1q_f32(w + i));
        vst1q_f32(to + kept, vreinterpretq_f32_u8(vqtbl1q_u8(weights, vld1q_u8(BYTES_IN[inside & 15].data()))));
        kept += inside >> 4;
    }
#endif
    for (; i < count; i++) {
        to[kept] = w[i];
        kept += place_of[i] - first <= last - first;
    }
    return kept;
}

}  // namespace
