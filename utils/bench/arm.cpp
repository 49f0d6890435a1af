// Compiled to the assembly of 64-bit Arm by utils/bench/arm.py, which finds the loops in it.
#include "../packed/kernel/instructions.h"

extern "C" const void* used() { return &instructions(); }    // else they would be left out

// The innermost loop of a float32 matrix product: 8 rows, 12 columns, 24 vectors of sums.
extern "C" void float_product(const float* a, const float* b, float* out, int64_t count) {
    float32x4_t sum[8][3] = {};
    do {
        const float32x4_t rows[2] = {vld1q_f32(a), vld1q_f32(a + 4)};
        const float32x4_t columns[3] = {vld1q_f32(b), vld1q_f32(b + 4), vld1q_f32(b + 8)};
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++)
#pragma GCC unroll 3
            for (int v = 0; v < 3; v++) sum[r][v] += rows[r / 4][r % 4] * columns[v];
        a += 8, b += 12;
    } while (--count);
    std::memcpy(out, sum, sizeof sum);
}
