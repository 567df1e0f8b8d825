// SPDX-License-Identifier: MIT
#include <asyncverbs/adapters/io_uring.hpp>

#include <cstdio>
#include <system_error>

int main() try {
    io_uring ring{};
    if (const int error = io_uring_queue_init(8, &ring, 0)) {
        throw std::system_error(-error, std::system_category(), "io_uring_queue_init");
    }
    {
        const asyncverbs::IoUringPoller poller(ring);
    }
    io_uring_queue_exit(&ring);
} catch (const std::system_error& error) {
    std::printf("not run: %s\n", error.what()); // some containers forbid it
}
