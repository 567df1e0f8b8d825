// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/asyncverbs.hpp>

#include <chrono>
#include <string>
#include <vector>

namespace rdma_cp {

struct SenderOptions {
    std::vector<std::string> files;
    std::string host;
    std::string port;
    std::chrono::seconds patience{60}; // to try again; a receiver may take 20 to miss its sender
};

/// Copies the files, one after the other. Tries again where a connection breaks, as
/// long as it has the patience after the last block.
asyncverbs::Task<> send_files(asyncverbs::EpollExecutor& loop, SenderOptions options);

} // namespace rdma_cp
