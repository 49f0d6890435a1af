// The processor's limit for binary convolutions: AND, popcount and add on 512 bits, nothing else.
#include <immintrin.h>
#include <time.h>

static double seconds() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Binary multiply-adds per second of one thread: 512 in a step, into 16 independent sums.
extern "C" double multiply_adds_per_second() {
    __m512i sums[16] = {}, a = _mm512_set1_epi64(0x123456789), b = _mm512_set1_epi64(0x987654321);
    double start = seconds();
    for (long n = 0; n < 100000; n++)
        for (int i = 0; i < 16; i++) {
            sums[i] = _mm512_add_epi64(sums[i], _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
            __asm__ volatile("" : "+v"(sums[i]), "+v"(a));
        }
    return 16e5 * 512 / (seconds() - start);
}
