// Packing and convolution with the best instruction set: chosen at run time on x86, else when compiled.
#pragma once
#include <cstdlib>
#include <string>

#include "../../native/threads.h"
#include "portable.h"

#if defined(__x86_64__)
#include "avx2.h"
#include "avx512.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

namespace {

struct Instructions {
    const char* name;
    bool available;
    void (*pixels)(const Packing&, int64_t, int64_t);
    void (*planes)(const Packing&, int64_t, int64_t, int64_t);
    void (*expand)(const Expansion&, int64_t, int64_t);
    void (*tabulate)(Convolution&, int64_t);
    void (*frame)(Convolution&, int64_t);
    void (*convolve)(const Convolution&, int64_t, int64_t);
};

template <class Set>
Instructions functions(const char* name, bool available) {
    return {name, available, Set::pixels, Set::planes, Set::expand, Set::tabulate, Set::frame, Set::convolve};
}

const std::vector<Instructions>& all_instructions() {    // best first
    static const std::vector<Instructions> all = {
#if defined(__x86_64__)
        functions<Avx512Functions>("avx512", __builtin_cpu_supports("avx512vpopcntdq") &&
            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")),
        functions<Avx2Functions>("avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
            __builtin_cpu_supports("popcnt")),
#elif defined(__aarch64__)
        functions<NeonFunctions>("neon", true),
#endif
        functions<PortableFunctions>("portable", true),
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

// Pack all images with this set, in up to so many threads.
void pack(const Instructions& set, const Packing& p, int64_t images, bool channels_last, int64_t threads) {
    constexpr int64_t LEAST = 1 << 15;      // values per thread, since waking a thread takes time
    if (channels_last) {
        in_threads(images * p.pixels, LEAST / p.channels + 1, threads, [&](int64_t begin, int64_t end) {
            set.pixels(p, begin, end);
        });
        return;
    }
    const int64_t part = 4 * LANES, parts = (p.pixels + part - 1) / part;
    in_threads(images * parts, LEAST / (p.channels * part) + 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++)
            set.planes(p, i / parts, i % parts * part, std::min((i % parts + 1) * part, p.pixels));
    });
}

// Pool the signs of all images, in up to so many threads.
void pool(const Pooling& p, int64_t images, int64_t threads) {
    const int64_t row = p.x.outputs * p.words * p.y.kernel * p.x.kernel;    // words read
    constexpr int64_t LEAST = 1 << 14;                                      // of them per thread
    in_threads(images * p.y.outputs, LEAST / row + 1, threads, [&](int64_t begin, int64_t end) {
        pool_rows(p, begin, end);
    });
}

// Expand so many filters with this set, in up to so many threads.
void expand(const Instructions& set, const Expansion& e, int64_t filters, int64_t threads) {
    constexpr int64_t LEAST = 1 << 15;      // weights per thread
    in_threads(filters, LEAST / (e.channels * e.taps) + 1, threads, [&](int64_t begin, int64_t end) {
        set.expand(e, begin, end);
    });
}

// Fill c.out, of a planned convolution with at least one output, with this set, in up to so many threads.
void convolve(const Instructions& set, Convolution& c, int64_t threads) {
    for (int64_t group = 0; group < c.groups; group++) set.tabulate(c, group);
    in_threads(c.images, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) set.frame(c, n);
    });
    in_threads(c.tiles * c.groups, 1, threads, [&](int64_t begin, int64_t end) { set.convolve(c, begin, end); });
}

}  // namespace
