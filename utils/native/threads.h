// Parallel loops in PyTorch's threads, also from compilers without OpenMP, as Apple's: at::parallel_for, compiled without
// it, runs in one thread.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#endif

namespace {

// What GCC makes of `#pragma omp parallel`: a call of run(argument) in so many threads, this one among them. GNU's OpenMP
// library has it and LLVM's too, and PyTorch has loaded one of them.
using Region = void (*)(void (*run)(void*), void* argument, unsigned threads, unsigned flags);

Region region() {    // null where there is none
#if __has_include(<dlfcn.h>)
    static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
#else
    return nullptr;
#endif
}

void call_in_threads(void (*run)(void*), void* argument, int64_t threads) {
    if (region() != nullptr) return region()(run, argument, static_cast<unsigned>(threads), 0);
    std::vector<std::thread> others;
    try {
        for (int64_t t = 1; t < threads; t++) others.emplace_back(run, argument);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that there are do the work.
    }
    run(argument);
    for (std::thread& other : others) other.join();
}

// Call work(begin, end) for up to `threads` parts of 0 … count − 1, of at least `least` items each, at the same time.
template <class Work>
void in_threads(int64_t count, int64_t least, int64_t threads, const Work& work) {
    const int64_t parts = std::min(threads, count / least);
    if (parts <= 1) return work(0, count);
    std::atomic<int64_t> next{0};
    auto share = [&] {
        for (int64_t part; (part = next++) < parts;) work(count * part / parts, count * (part + 1) / parts);
    };
    call_in_threads([](void* of) { (*static_cast<decltype(share)*>(of))(); }, &share, parts);
}

}  // namespace
