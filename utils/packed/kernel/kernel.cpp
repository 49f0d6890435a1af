// The operators dab::pack_signs, dab::pool_signs and dab::binary_conv2d: signs in 64-bit words, their
// maximum over windows, and their convolution with two-valued filters by AND and popcount; and
// dab::expand, bits to weights.
// utils/packed/ops.py builds this file, and says what each operator takes and returns.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <string>

#include "instructions.h"

namespace {

// Messages are one string: to put them together, PyTorch's macro takes a stream, and streams crash where a process holds
// two C++ runtimes (seen with torch 2.11 and GCC 13.3).
std::string misfit(const char* name, int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    return std::string(name) + ": a kernel of " + std::to_string(kernel) + " with stride " + std::to_string(stride) +
           " and padding " + std::to_string(pad) + " does not fit a side of " + std::to_string(size);
}

std::vector<uint64_t> words_of(const at::Tensor& flip) {
    const auto flips = flip.contiguous();
    std::vector<uint64_t> words((flips.numel() + 63) / 64);
    for (int64_t c = 0; c < flips.numel(); c++)
        words[c / 64] |= static_cast<uint64_t>(flips.const_data_ptr<bool>()[c]) << c % 64;
    return words;
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
    const auto thresholds = threshold.contiguous();
    const auto flip_words = words_of(flip);
    const int64_t words = (channels + 63) / 64, pixels = height * width;
    auto bits = at::empty({images, height, width, words}, x.options().dtype(at::kLong));
    const Packing packing = {values.const_data_ptr<float>(), thresholds.const_data_ptr<float>(), flip_words.data(),
                             reinterpret_cast<uint64_t*>(bits.mutable_data_ptr<int64_t>()), channels, words, pixels};
    pack(instructions(), packing, images, channels_last, at::get_num_threads());
    return bits;
}

Side checked_side(int64_t size, int64_t kernel, int64_t stride, int64_t pad, bool ceil_mode) {
    TORCH_CHECK_VALUE(kernel > 0 && stride > 0 && pad >= 0 && 2 * pad <= kernel && size + 2 * pad >= kernel,
                      misfit("pool_signs", size, kernel, stride, pad));
    const int64_t outputs = (size + 2 * pad - kernel + (ceil_mode ? stride - 1 : 0)) / stride + 1;
    // As in PyTorch, every window begins in the image or in the padding before it.
    return {size, kernel, stride, pad, outputs - (ceil_mode && (outputs - 1) * stride >= size + pad)};
}

at::Tensor pool_signs(const at::Tensor& bits, const at::Tensor& flip, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, bool ceil_mode) {
    TORCH_CHECK_VALUE(bits.dim() == 4 && bits.scalar_type() == at::kLong && flip.dim() == 1 &&
                      flip.scalar_type() == at::kBool && bits.size(3) == (flip.size(0) + 63) / 64,
                      "pool_signs takes the int64 (N, H, W, words) of pack_signs and its bool flip");
    TORCH_CHECK_VALUE(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                      "pool_signs takes numbers or pairs for kernel_size, stride and padding");
    const Side y = checked_side(bits.size(1), kernel[0], stride[0], padding[0], ceil_mode);
    const Side x = checked_side(bits.size(2), kernel[1], stride[1], padding[1], ceil_mode);
    const auto image = bits.contiguous();
    const auto flip_words = words_of(flip);
    auto out = at::empty({bits.size(0), y.outputs, x.outputs, bits.size(3)}, bits.options());
    if (out.numel() == 0) return out;

    const Pooling pooling = {y, x, reinterpret_cast<const uint64_t*>(image.const_data_ptr<int64_t>()),
                             flip_words.data(), reinterpret_cast<uint64_t*>(out.mutable_data_ptr<int64_t>()),
                             bits.size(3)};
    pool(pooling, bits.size(0), at::get_num_threads());
    return out;
}

Axis checked_axis(int64_t size, int64_t kernel, int64_t stride, int64_t pad) {
    TORCH_CHECK_VALUE(kernel > 0 && stride > 0 && pad >= 0 && size + 2 * pad >= kernel,
                      misfit("binary_conv2d", size, kernel, stride, pad));
    return axis(size, kernel, stride, pad);
}

at::Tensor binary_conv2d(const at::Tensor& bits, const at::Tensor& prepared, const at::Tensor& alpha,
                         const at::Tensor& beta, int64_t channels, at::IntArrayRef kernel, at::IntArrayRef stride,
                         at::IntArrayRef padding, bool relu, const std::optional<at::Tensor>& shortcut) {
    TORCH_CHECK_VALUE(bits.dim() == 4 && bits.scalar_type() == at::kLong && channels > 0 &&
                      bits.size(3) == (channels + 63) / 64,
                      "binary_conv2d takes the int64 (N, H, W, words) of pack_signs for " + std::to_string(channels) +
                          " channels");
    TORCH_CHECK_VALUE(alpha.dim() == 1 && beta.sizes() == alpha.sizes() && alpha.scalar_type() == at::kFloat &&
                      beta.scalar_type() == at::kFloat, "binary_conv2d takes float32 alpha and beta for each filter");
    TORCH_CHECK_VALUE(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2,
                      "binary_conv2d takes numbers or pairs for kernel_size, stride and padding");
    const Axis y = checked_axis(bits.size(1), kernel[0], stride[0], padding[0]);
    const Axis x = checked_axis(bits.size(2), kernel[1], stride[1], padding[1]);
    const auto image = bits.contiguous(), alphas = alpha.contiguous(), betas = beta.contiguous();
    auto out = at::empty({bits.size(0), alpha.size(0), y.outputs, x.outputs}, alpha.options(),
                         at::MemoryFormat::ChannelsLast);
    TORCH_CHECK_VALUE(!shortcut || (shortcut->sizes() == out.sizes() && shortcut->scalar_type() == at::kFloat),
                      "binary_conv2d takes a float32 shortcut of the shape of its output");
    const auto added = shortcut ? shortcut->contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
    Convolution c = plan(y, x, bits.size(0), channels, alpha.size(0), relu,
                         reinterpret_cast<const uint64_t*>(image.const_data_ptr<int64_t>()),
                         shortcut ? added.const_data_ptr<float>() : nullptr);
    TORCH_CHECK_VALUE(prepared.scalar_type() == at::kLong && prepared.is_contiguous() && prepared.sizes() ==
                      at::IntArrayRef({c.groups, y.kernel * x.kernel * (c.words + 1), FILTERS}),
                      "binary_conv2d: the prepared filters are those of another convolution");
    if (out.numel() == 0) return out;

    c.prepared = reinterpret_cast<const uint64_t*>(prepared.const_data_ptr<int64_t>());
    c.alpha = alphas.const_data_ptr<float>(), c.beta = betas.const_data_ptr<float>();
    c.out = out.mutable_data_ptr<float>();
    convolve(instructions(), c, at::get_num_threads());
    return out;
}

at::Tensor expand_bits(const at::Tensor& words, const at::Tensor& alpha, const at::Tensor& beta, int64_t channels) {
    TORCH_CHECK_VALUE(words.dim() == 4 && words.scalar_type() == at::kLong && channels > 0 &&
                      words.size(3) == (channels + 63) / 64,
                      "expand takes the int64 (out, kh, kw, words) of pack_mask for " + std::to_string(channels) +
                          " channels");
    TORCH_CHECK_VALUE(alpha.dim() == 1 && alpha.size(0) == words.size(0) && beta.sizes() == alpha.sizes() &&
                      alpha.scalar_type() == at::kFloat && beta.scalar_type() == at::kFloat,
                      "expand takes float32 alpha and beta for each filter");
    const auto bits = words.contiguous(), alphas = alpha.contiguous(), betas = beta.contiguous();
    auto out = at::empty({words.size(0), channels, words.size(1), words.size(2)}, alpha.options());
    if (out.numel() == 0) return out;

    const Expansion expansion = {reinterpret_cast<const uint64_t*>(bits.const_data_ptr<int64_t>()),
                                 alphas.const_data_ptr<float>(), betas.const_data_ptr<float>(),
                                 out.mutable_data_ptr<float>(), channels, words.size(1) * words.size(2)};
    expand(instructions(), expansion, words.size(0), at::get_num_threads());
    return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(dab, m) {
    m.def("instruction_sets() -> str[]", instruction_sets);
    m.def("pack_signs(Tensor x, Tensor threshold, Tensor flip) -> Tensor");
    m.def("pool_signs(Tensor bits, Tensor flip, int[2] kernel_size, int[2] stride, int[2] padding, bool ceil_mode) "
          "-> Tensor");
    m.def("binary_conv2d(Tensor bits, Tensor prepared, Tensor alpha, Tensor beta, int channels, int[2] kernel_size, "
          "int[2] stride, int[2] padding, bool relu, Tensor? shortcut=None) -> Tensor");
    m.def("expand(Tensor words, Tensor alpha, Tensor beta, int channels) -> Tensor");
}

TORCH_LIBRARY_IMPL(dab, CPU, m) {
    m.impl("pack_signs", pack_signs);
    m.impl("pool_signs", pool_signs);
    m.impl("binary_conv2d", binary_conv2d);
    m.impl("expand", expand_bits);
}
