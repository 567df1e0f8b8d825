// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/asyncverbs.hpp>

#include <string>

namespace rdma_cp {

struct ReceiverOptions {
    std::string directory;
    std::string bind; // empty: everywhere
    std::string port;
    bool overwrite = false;
};

/// Receives files into the directory, from any number of senders, without end.
asyncverbs::Task<> receive_files(asyncverbs::EpollExecutor& loop, ReceiverOptions options);

} // namespace rdma_cp
