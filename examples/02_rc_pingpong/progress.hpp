// SPDX-License-Identifier: MIT
// A line on the terminal that says how far a long run has come. It is rewritten in place and leaves
// nothing behind; where standard error is no terminal, nothing is written at all.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>

namespace pingpong {

class Progress {
public:
    using Clock = std::chrono::steady_clock;
    static constexpr std::chrono::milliseconds interval{250};

    explicit Progress(std::uint32_t total) noexcept
        : total_(total), on_terminal_(::isatty(STDERR_FILENO) == 1) {}
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;
    ~Progress() {
        if (shown_) std::fputs("\r\033[K", stderr);
    }

    bool on_terminal() const noexcept { return on_terminal_; }

    /// Shows how many of the iterations are done.
    void show(std::uint32_t done) {
        if (!on_terminal_ || done == 0) return;
        const std::chrono::duration<double> elapsed = Clock::now() - start_;
        const double seconds_each = elapsed.count() / done;
        std::fprintf(stderr, "\r%u of %u iters, %.2f usec/iter, %.0f s left\033[K", done, total_,
                     seconds_each * 1e6, seconds_each * (total_ - done));
        shown_ = true;
    }

private:
    const std::uint32_t total_;
    const bool on_terminal_;
    const Clock::time_point start_ = Clock::now();
    bool shown_ = false;
};

} // namespace pingpong
