// The kernel for x86 processors with AVX2.
#pragma once
#include <immintrin.h>

#include "portable.h"

#define AVX2 __attribute__((target("avx2,fma,popcnt")))

namespace {

struct Avx2 {
    static constexpr int64_t most = 1;

    static constexpr int VECTORS = FILTERS / 4;

    // Popcounts of half bytes from a table in a register (Muła, Kurz, Lemire, Faster Population
    // Counts, 2018).
    AVX2 static void count(const Convolution& c, const uint64_t* filters, const uint64_t* bits, __m256i* sum) {
        const __m256i low = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
        const __m256i counts = _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
        const int64_t words = c.offsets.size();
        for (int v = 0; v < VECTORS; v++) sum[v] = zero;
        for (int64_t first = 0; first < words; first += BYTE_WORDS) {
            __m256i bytes[VECTORS] = {};
            const int64_t* offset = c.offsets.data() + first;
            const int64_t* end = c.offsets.data() + std::min(first + BYTE_WORDS, words);
            do {
                const __m256i x = _mm256_set1_epi64x(bits[*offset]);
                const __m256i x_low = _mm256_and_si256(x, low), x_high = _mm256_andnot_si256(low, x);
#pragma GCC unroll 8
                for (int v = 0; v < VECTORS; v++) {
                    const __m256i filter = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(filters) + v);
                    const __m256i high = _mm256_srli_epi16(_mm256_and_si256(x_high, filter), 4);
                    bytes[v] = _mm256_add_epi8(bytes[v], _mm256_shuffle_epi8(counts, _mm256_and_si256(x_low, filter)));
                    bytes[v] = _mm256_add_epi8(bytes[v], _mm256_shuffle_epi8(counts, high));
                }
                filters += FILTERS;
            } while (++offset < end);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; v++) sum[v] = _mm256_add_epi64(sum[v], _mm256_sad_epu8(bytes[v], zero));
        }
    }

    AVX2 static void run(const Convolution& c, int64_t group, const Position* position, int64_t, float* out, int64_t) {
        const __m256d exponent = _mm256_set1_pd(1ull << 52), total = _mm256_set1_pd(position->sum);
        const __m128 lowest = _mm_set1_ps(c.lowest);
        const double* slope = c.slope[group].of;
        const double* shared = c.shared[group].of;
        const double* constant = c.constant[group * c.windows() + position->window].of;
        __m256i sum[VECTORS];
        count(c, c.of_group(group), position->bits, sum);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) {    // like finish()
            // AVX2 cannot convert 64-bit integers: in the fraction of 2^52 they are doubles.
            const __m256i fraction = _mm256_or_si256(sum[v], _mm256_castpd_si256(exponent));
            const __m256d counted = _mm256_sub_pd(_mm256_castsi256_pd(fraction), exponent);
            const __m256d rest = _mm256_fmadd_pd(total, _mm256_load_pd(shared + 4 * v), _mm256_load_pd(constant + 4 * v));
            const __m256d value = _mm256_fmadd_pd(counted, _mm256_load_pd(slope + 4 * v), rest);
            _mm_storeu_ps(out + 4 * v, _mm_max_ps(lowest, _mm256_cvtpd_ps(value)));
        }
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
