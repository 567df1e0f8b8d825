// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace rdma_cp {

struct Options {
    std::uint16_t port = 7472;

    // The sender's:
    std::vector<std::string> files;
    std::string host;
    unsigned patience = 60; // seconds to try again while no receiver answers

    // The receiver's:
    std::string directory; // empty: be the sender
    std::string bind;      // empty: every address
    bool overwrite = false;
};

/// Copies the files, one after the other. Connects again if a connection breaks, until the patience
/// has passed. A file that cannot be copied does not stop the next one; throws std::runtime_error
/// in the end.
asyncverbs::Task<> send_files(asyncverbs::EpollExecutor& loop, const Options& options);

/// Receives files into the directory, from any number of senders, without end.
asyncverbs::Task<> receive_files(asyncverbs::EpollExecutor& loop, const Options& options);

} // namespace rdma_cp
