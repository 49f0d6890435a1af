// The code for 64-bit Arm behind two pipes, so that an emulator can run it. It says which instruction set it uses; then
// tests/test_arm.py asks, by a letter, numbers and arrays, and gets the arrays that the libraries would compute.
#include <cstdio>

#include "../utils/packed/kernel/instructions.h"

extern "C" {
void dab_forward(float*, float*, float*, float*, float*, float*, int64_t, int64_t, int64_t, int);
void dab_backward(const float*, const float*, const float*, const float*, const float*, const float*, float*, int64_t,
                  int64_t, int64_t, int);
}

template <class T>
std::vector<T> get(int64_t count) {
    std::vector<T> values(count);
    if (std::fread(values.data(), sizeof(T), count, stdin) != static_cast<size_t>(count)) std::exit(1);
    return values;
}

template <class T>
void put(const std::vector<T>& values) {
    std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

int main() {
    std::printf("%s\n", instructions().name), std::fflush(stdout);
    for (char what; std::fread(&what, 1, 1, stdin) == 1; std::fflush(stdout)) {
        const auto n = get<int64_t>(12);
        const int64_t threads = n[0];
        if (what == 'p') {
            const int64_t images = n[1], channels = n[2], pixels = n[3], words = (channels + 63) / 64;
            const auto x = get<float>(images * channels * pixels), threshold = get<float>(channels);
            const auto flips = get<uint64_t>(words);
            std::vector<uint64_t> bits(images * pixels * words);
            const Packing p = {x.data(), threshold.data(), flips.data(), bits.data(), channels, words, pixels};
            pack(instructions(), p, images, n[4], threads);
            put(bits);
        } else if (what == 'c') {
            const Axis y = axis(n[1], n[2], n[3], n[4]), x = axis(n[5], n[6], n[7], n[8]);
            const int64_t images = n[9], channels = n[10], filters = n[11] / 2;
            const auto bits = get<uint64_t>(images * y.size * x.size * ((channels + 63) / 64));
            Convolution c = plan(y, x, images, channels, filters, n[11] % 2, bits.data());
            const auto prepared = get<uint64_t>(c.groups * y.kernel * x.kernel * (c.words + 1) * FILTERS);
            const auto alpha = get<float>(filters), beta = get<float>(filters);
            std::vector<float> out(c.all * filters);
            c.prepared = prepared.data(), c.alpha = alpha.data(), c.beta = beta.data(), c.out = out.data();
            convolve(instructions(), c, threads);
            put(out);
        } else if (what == 'f') {
            const int64_t filters = n[1], size = filters * n[2] * n[3];
            auto weights = get<float>(size);
            std::vector<float> two_valued(size), values(4 * filters);
            float* of = values.data();
            dab_forward(weights.data(), two_valued.data(), of, of + filters, of + 2 * filters, of + 3 * filters,
                        filters, n[2], n[3], threads);
            put(weights), put(two_valued), put(values);
        } else {
            const int64_t filters = n[1], size = filters * n[2] * n[3];
            const auto gradient = get<float>(size), weights = get<float>(size), values = get<float>(4 * filters);
            std::vector<float> latent(size);
            const float* of = values.data();
            dab_backward(gradient.data(), weights.data(), of, of + filters, of + 2 * filters, of + 3 * filters,
                         latent.data(), filters, n[2], n[3], threads);
            put(latent);
        }
    }
}
