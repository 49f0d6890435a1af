// The operators dab::pack_signs and dab::binary_conv2d: signs in 64-bit words, and their
// convolution with two-valued filters by AND and popcount. utils/packed/ops.py builds this file and
// has the formulas, the schemas, and the same operators in PyTorch.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <limits>

#include "instructions.h"

namespace {

// Call work(begin, end) in threads, for parts of 0 … count − 1 of at least `least` items each:
// waking a thread takes time.
template <class Work>
void in_threads(int64_t count, int64_t least, Work work) {
    const int64_t threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), count / least));
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t t = 0; t < threads; t++) work(count * t / threads, count * (t + 1) / threads);
}

at::Tensor pack_signs(const at::Tensor& x, const at::Tensor& threshold, const at::Tensor& flip) {
    TORCH_CHECK_VALUE(x.dim() == 4 && x.size(1) > 0 && x.scalar_type() == at::kFloat,
                      "pack_signs takes a float32 (N, C, H, W)");
    const int64_t images = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
    TORCH_CHECK_VALUE(threshold.dim() == 1 && threshold.size(0) == channels && threshold.scalar_type() == at::kFloat &&
                      flip.dim() == 1 && flip.size(0) == channels && flip.scalar_type() == at::kBool,
                      "pack_signs takes a float32 threshold and a bool flip for each channel");
    const bool channels_last = x.is_contiguous(at::MemoryFormat::ChannelsLast);
    const auto values = channels_last ? x : x.contiguous();
    const auto thresholds = threshold.contiguous(), flips = flip.contiguous();
    const int64_t words = (channels + 63) / 64, pixels = height * width;
    auto bits = at::empty({images, height, width, words}, x.options().dtype(at::kLong));
    std::vector<uint64_t> flip_words(words);
    for (int64_t c = 0; c < channels; c++)
        flip_words[c / 64] |= static_cast<uint64_t>(flips.const_data_ptr<bool>()[c]) << c % 64;
    const Packing packing = {values.const_data_ptr<float>(), thresholds.const_data_ptr<float>(), flip_words.data(),
                             reinterpret_cast<uint64_t*>(bits.mutable_data_ptr<int64_t>()), channels, words, pixels};
    const auto& set = instructions();
    constexpr int64_t LEAST = 1 << 15;      // values per thread, since waking a thread takes time
    if (channels_last) {
        in_threads(images * pixels, LEAST / channels + 1, [&](int64_t begin, int64_t end) { set.pixels(packing, begin, end); });
    } else {
        const int64_t part = 4 * LANES, parts = (pixels + part - 1) / part;
        in_threads(images * parts, LEAST / (channels * part) + 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; i++)
                set.planes(packing, i / parts, i % parts * part, std::min((i % parts + 1) * part, pixels));
        });
    }
    return bits;
}

Axis axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    TORCH_CHECK_VALUE(kernel > 0 && stride > 0 && pad >= 0 && size + 2 * pad >= kernel,
                      "binary_conv2d: a kernel of ", kernel, " with stride ", stride, " and padding ", pad,
                      " does not fit a side of ", size);
    Axis axis = {size, kernel, stride, pad, size + 2 * pad, (size + 2 * pad - kernel) / stride + 1, {}, {}};
    for (int64_t i = 0; i < axis.outputs; i++) {
        const int64_t start = i * stride - pad;
        const Taps taps = {std::clamp<int64_t>(-start, 0, kernel), std::clamp<int64_t>(size - start, 0, kernel)};
        if (axis.windows.empty() || !(axis.windows.back() == taps)) axis.windows.push_back(taps);
        axis.window_of.push_back(static_cast<int32_t>(axis.windows.size() - 1));
    }
    return axis;
}

at::Tensor binary_conv2d(const at::Tensor& bits, const at::Tensor& prepared, const at::Tensor& alpha,
                         const at::Tensor& beta, int64_t channels, at::IntArrayRef kernel, at::IntArrayRef stride,
                         at::IntArrayRef padding, bool relu) {
    TORCH_CHECK_VALUE(bits.dim() == 4 && bits.scalar_type() == at::kLong && channels > 0 &&
                      bits.size(3) == (channels + 63) / 64,
                      "binary_conv2d takes the int64 (N, H, W, words) of pack_signs for ", channels, " channels");
    TORCH_CHECK_VALUE(alpha.dim() == 1 && beta.sizes() == alpha.sizes() && alpha.scalar_type() == at::kFloat &&
                      beta.scalar_type() == at::kFloat, "binary_conv2d takes float32 alpha and beta for each filter");
    TORCH_CHECK_VALUE(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                      "binary_conv2d takes numbers or pairs for kernel_size, stride and padding");
    Convolution c;
    c.y = axis(bits.size(1), kernel[0], stride[0], padding[0]);
    c.x = axis(bits.size(2), kernel[1], stride[1], padding[1]);
    c.channels = channels, c.words = bits.size(3);
    c.filters = alpha.size(0), c.groups = (c.filters + FILTERS - 1) / FILTERS;
    TORCH_CHECK_VALUE(prepared.scalar_type() == at::kLong && prepared.is_contiguous() && prepared.sizes() ==
                      at::IntArrayRef({c.groups, c.y.kernel * c.x.kernel * (c.words + 1), FILTERS}),
                      "binary_conv2d: the prepared filters are those of another convolution");
    const int64_t images = bits.size(0);
    auto out = at::empty({images, c.filters, c.y.outputs, c.x.outputs}, alpha.options(),
                         at::MemoryFormat::ChannelsLast);
    if (out.numel() == 0) return out;

    const auto image = bits.contiguous(), alphas = alpha.contiguous(), betas = beta.contiguous();
    c.image = reinterpret_cast<const uint64_t*>(image.const_data_ptr<int64_t>());
    c.prepared = reinterpret_cast<const uint64_t*>(prepared.const_data_ptr<int64_t>());
    c.alpha = alphas.const_data_ptr<float>(), c.beta = betas.const_data_ptr<float>();
    c.out = out.mutable_data_ptr<float>();
    c.lowest = relu ? 0 : -std::numeric_limits<float>::infinity();
    const bool pads = c.y.pad || c.x.pad;
    c.sums.resize(images * c.y.padded * c.x.padded);
    c.copy.resize(pads ? c.sums.size() * c.words : 0);
    c.padded = pads ? c.copy.data() : const_cast<uint64_t*>(c.image);
    for (auto& window : c.y.window_of) window *= static_cast<int32_t>(c.x.windows.size());
    c.slope.resize(c.groups), c.shared.resize(c.groups), c.constant.resize(c.groups * c.windows());
    c.all = images * c.y.outputs * c.x.outputs;
    const int64_t tiles = std::max<int64_t>(1, (c.all + TILE / 2) / TILE);
    c.tile = ((c.all + tiles - 1) / tiles + 5) / 6 * 6;    // whole blocks of Avx512
    c.tiles = (c.all + c.tile - 1) / c.tile;

    for (int64_t i = 0; i < c.y.kernel; i++)
        for (int64_t k = 0; k < c.x.kernel * c.words; k++) c.offsets.push_back(i * c.x.padded * c.words + k);

    const auto& set = instructions();
    for (int64_t group = 0; group < c.groups; group++) set.tabulate(c, group);
    in_threads(images, 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; n++) set.frame(c, n);
    });
    in_threads(c.tiles * c.groups, 1, [&](int64_t begin, int64_t end) { set.convolve(c, begin, end); });
    return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dab, m) { m.def("instruction_sets() -> str[]", instruction_sets); }

TORCH_LIBRARY_IMPL(dab, CPU, m) {
    m.impl("pack_signs", pack_signs);
    m.impl("binary_conv2d", binary_conv2d);
}
