// The kernel for x86 processors with AVX-512 and its popcount.
#pragma once
#include <immintrin.h>

#include "portable.h"

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma,popcnt")))

namespace {

struct Avx512 {
    // 24 accumulators, 4 words of filters, a word of signs: 29 of 32 registers
    static constexpr int64_t most = 6;

    template <int POSITIONS>
    AVX512 static void block(const Convolution& c, int64_t group, const Position* position, float* out, int64_t step) {
        constexpr int VECTORS = FILTERS / 8;
        const uint64_t* filters = c.of_group(group);
        __m512i sum[POSITIONS][VECTORS];
        const uint64_t* bits[POSITIONS];
        for (int p = 0; p < POSITIONS; p++) {
            bits[p] = position[p].bits;
            for (int v = 0; v < VECTORS; v++) sum[p][v] = _mm512_setzero_si512();
        }
        const int64_t* end = c.offsets.data() + c.offsets.size();
        const int64_t* offset = c.offsets.data();
        // Not `while`: if the loop could be empty, the compiler would keep the sums in memory.
        do {
            __m512i words[VECTORS];
            for (int v = 0; v < VECTORS; v++) words[v] = _mm512_loadu_si512(filters + v * 8);
            for (int p = 0; p < POSITIONS; p++) {
                const __m512i x = _mm512_set1_epi64(bits[p][*offset]);
                for (int v = 0; v < VECTORS; v++)
                    sum[p][v] = _mm512_add_epi64(sum[p][v], _mm512_popcnt_epi64(_mm512_and_si512(x, words[v])));
            }
            filters += FILTERS;
        } while (++offset < end);
        const __m256 lowest = _mm256_set1_ps(c.lowest);
        const double* slope = c.slope[group].of;
        const double* shared = c.shared[group].of;
        const Lanes* constants = c.constant.data() + group * c.windows();
#pragma GCC unroll 6
        for (int p = 0; p < POSITIONS; p++) {    // like finish()
            const __m512d total = _mm512_set1_pd(position[p].sum);
            const double* constant = constants[position[p].window].of;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                const __m512d rest = _mm512_fmadd_pd(total, _mm512_load_pd(shared + v * 8),
                                                     _mm512_load_pd(constant + v * 8));
                const __m512d value = _mm512_fmadd_pd(_mm512_cvtepi64_pd(sum[p][v]), _mm512_load_pd(slope + v * 8),
                                                      rest);
                _mm256_storeu_ps(out + p * step + v * 8, _mm256_max_ps(lowest, _mm512_cvtpd_ps(value)));
            }
        }
    }

    AVX512 static void run(const Convolution& c, int64_t group, const Position* position, int64_t positions, float* out,
                           int64_t step) {
        constexpr decltype(&block<1>) blocks[] = {block<1>, block<2>, block<3>, block<4>, block<5>, block<6>};
        blocks[positions - 1](c, group, position, out, step);
    }

    AVX512 static uint64_t signs(const float* x, const float* threshold, int64_t count) {
        uint64_t word = 0;
        if (count == 64) {
            for (int64_t c = 0; c < 64; c += 16) {
                __builtin_prefetch(x + c + AHEAD);
                word |= static_cast<uint64_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(x + c), _mm512_loadu_ps(threshold + c),
                                                                 _CMP_GE_OQ)) << c;
            }
            return word;
        }
        for (int64_t c = 0; c < count; c += 16) {
            const __mmask16 there = count - c < 16 ? (1u << (count - c)) - 1 : 0xffff;
            word |= static_cast<uint64_t>(_mm512_mask_cmp_ps_mask(
                there, _mm512_maskz_loadu_ps(there, x + c), _mm512_maskz_loadu_ps(there, threshold + c), _CMP_GE_OQ)) << c;
        }
        return word;
    }
};
ENTRY_POINTS(AVX512, Avx512)

}  // namespace
