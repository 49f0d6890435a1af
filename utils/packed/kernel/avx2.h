// The kernel for x86 processors with AVX2.
#pragma once
#include <immintrin.h>

#include "portable.h"

#define AVX2 __attribute__((target("avx2,fma,popcnt")))

namespace {

struct Avx2 {
    static constexpr int64_t most = 1;

    // Popcounts of half bytes from a table in a register (Muła, Kurz, Lemire, Faster Population
    // Counts, 2018).
    AVX2 static void run(const Convolution& c, int64_t group, const Position* position, int64_t, float* out, int64_t) {
        constexpr int VECTORS = FILTERS / 4;
        const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
        const __m256i counts = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const uint64_t* filters = c.of_group(group);
        const int64_t words = c.offsets.size();
        alignas(32) int64_t count[FILTERS] = {};
        for (int64_t first = 0; first < words; first += BYTE_WORDS) {
            __m256i bytes[VECTORS] = {};
            for (int64_t k = first; k < std::min(first + BYTE_WORDS, words); k++, filters += FILTERS) {
                const __m256i x = _mm256_set1_epi64x(position->bits[c.offsets[k]]);
                for (int v = 0; v < VECTORS; v++) {
                    const __m256i both = _mm256_and_si256(
                        x, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(filters) + v));
                    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                    bytes[v] = _mm256_add_epi8(bytes[v], _mm256_add_epi8(
                        _mm256_shuffle_epi8(counts, _mm256_and_si256(both, low)), _mm256_shuffle_epi8(counts, high)));
                }
            }
            for (int v = 0; v < VECTORS; v++) {
                __m256i* sum = reinterpret_cast<__m256i*>(count) + v;
                _mm256_store_si256(sum, _mm256_add_epi64(*sum, _mm256_sad_epu8(bytes[v], zero)));
            }
        }
        finish(c, group, *position, count, out);
    }

    AVX2 static uint64_t signs(const float* x, const float* threshold, int64_t count) {
        uint64_t word = 0;
        int64_t c = 0;
        for (; c + 8 <= count; c += 8)
            word |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(
                _mm256_loadu_ps(x + c), _mm256_loadu_ps(threshold + c), _CMP_GE_OQ))) << c;
        return c == count ? word : word | signs_one_by_one(x + c, 1, threshold + c, count - c) << c;
    }
};
ENTRY_POINTS(AVX2, Avx2)

}  // namespace
