// The code that differs between instruction sets: counting bits, packing a word. The set is chosen
// at run time.
#pragma once
#include <cstdlib>
#include <string>

#include "convolution.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,popcnt")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma,popcnt")))
#endif

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
};

void portable_pixels(const Packing& p, int64_t begin, int64_t end) {
    pack_pixels(p, begin, end, [](const float* x, const float* threshold, int64_t count) {
        return signs_one_by_one(x, 1, threshold, count);
    });
}
void portable_planes(const Packing& p, int64_t image, int64_t begin, int64_t end) { pack_planes(p, image, begin, end); }
void portable_frame(Convolution& c, int64_t n) { frame(c, n); }
void portable_tabulate(Convolution& c, int64_t group) { tabulate(c, group); }
void portable_convolve(const Convolution& c, int64_t begin, int64_t end) { convolve<Portable>(c, begin, end); }

#ifdef AVX2
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
};

AVX2 uint64_t avx2_signs(const float* x, const float* threshold, int64_t count) {
    uint64_t word = 0;
    int64_t c = 0;
    for (; c + 8 <= count; c += 8)
        word |= static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(
            _mm256_loadu_ps(x + c), _mm256_loadu_ps(threshold + c), _CMP_GE_OQ))) << c;
    return c == count ? word : word | signs_one_by_one(x + c, 1, threshold + c, count - c) << c;
}
AVX2 void avx2_pixels(const Packing& p, int64_t begin, int64_t end) { pack_pixels(p, begin, end, avx2_signs); }
AVX2 void avx2_planes(const Packing& p, int64_t image, int64_t begin, int64_t end) {
    pack_planes(p, image, begin, end);
}
AVX2 void avx2_frame(Convolution& c, int64_t n) { frame(c, n); }
AVX2 void avx2_tabulate(Convolution& c, int64_t group) { tabulate(c, group); }
AVX2 void avx2_convolve(const Convolution& c, int64_t begin, int64_t end) { convolve<Avx2>(c, begin, end); }

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
};

AVX512 uint64_t avx512_signs(const float* x, const float* threshold, int64_t count) {
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
AVX512 void avx512_pixels(const Packing& p, int64_t begin, int64_t end) { pack_pixels(p, begin, end, avx512_signs); }
AVX512 void avx512_planes(const Packing& p, int64_t image, int64_t begin, int64_t end) {
    pack_planes(p, image, begin, end);
}
AVX512 void avx512_frame(Convolution& c, int64_t n) { frame(c, n); }
AVX512 void avx512_tabulate(Convolution& c, int64_t group) { tabulate(c, group); }
AVX512 void avx512_convolve(const Convolution& c, int64_t begin, int64_t end) { convolve<Avx512>(c, begin, end); }
#endif

struct Instructions {
    const char* name;
    bool available;
    void (*pixels)(const Packing&, int64_t, int64_t);
    void (*planes)(const Packing&, int64_t, int64_t, int64_t);
    void (*tabulate)(Convolution&, int64_t);
    void (*frame)(Convolution&, int64_t);
    void (*convolve)(const Convolution&, int64_t, int64_t);
};

const std::vector<Instructions>& all_instructions() {    // best first
    static const std::vector<Instructions> all = {
#ifdef AVX2
        {"avx512", __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
         avx512_pixels, avx512_planes, avx512_tabulate, avx512_frame, avx512_convolve},
        {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt"),
         avx2_pixels, avx2_planes, avx2_tabulate, avx2_frame, avx2_convolve},
#endif
        {"portable", true, portable_pixels, portable_planes, portable_tabulate, portable_frame, portable_convolve},
    };
    return all;
}

const Instructions& instructions() {
    const char* highest = std::getenv("DAB_INSTRUCTIONS");
    bool allowed = highest == nullptr || *highest == 0;
    for (const auto& set : all_instructions()) {
        allowed = allowed || std::strcmp(highest, set.name) == 0;
        if (allowed && set.available) return set;
    }
    return all_instructions().back();
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const auto& set : all_instructions())
        if (set.available) names.push_back(set.name);
    return names;
}

}  // namespace
