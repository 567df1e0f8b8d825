// SPDX-License-Identifier: MIT
// How far a file is, on a terminal; and what came of it, anywhere.
#pragma once

#include "protocol.hpp"

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace rdma_cp {

class Progress {
public:
    explicit Progress(const Offer& offer) : name_(offer.name), size_(offer.size) {}
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() { clear(); }

    /// `done` bytes are on their way or there, of which `before` were there at the start.
    void show(std::uint64_t done, std::uint64_t before) {
        const auto now = Clock::now();
        if (!on_terminal_ || (now - last_ < std::chrono::milliseconds(200) && done < size_)) return;
        last_ = now;
        const double seconds = std::chrono::duration<double>(now - start_).count();
        const double rate = static_cast<double>(done - before) / (seconds > 0 ? seconds : 1);
        const double fraction = static_cast<double>(done) / static_cast<double>(size_);
        const double left = rate > 0 ? static_cast<double>(size_ - done) / rate : 0;
        constexpr int width = 30;
        const int filled = static_cast<int>(fraction * width);
        std::fprintf(stderr, "\r%s %3.0f %% [%.*s%*s] %.1f MB/s, %.0f s left\033[K", name_.c_str(),
                     fraction * 100, filled, "##############################", width - filled, "",
                     rate / 1e6, left);
        shown_ = true;
    }

    /// The whole file is there.
    void finish() {
        clear();
        const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
        std::printf("%s: %llu bytes in %.1f s\n", name_.c_str(),
                    static_cast<unsigned long long>(size_), seconds);
    }

    void clear() {
        if (shown_) std::fputs("\r\033[K", stderr);
        shown_ = false;
    }

private:
    using Clock = std::chrono::steady_clock;

    std::string name_;
    std::uint64_t size_;
    bool on_terminal_ = ::isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
    Clock::time_point start_ = Clock::now();
    Clock::time_point last_{};
};

} // namespace rdma_cp
