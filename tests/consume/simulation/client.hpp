// SPDX-License-Identifier: MIT
// The program that is tested: a client that sends a number to a server, and gets another one.
#pragma once

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <cstdint>
#include <cstring>
#include <system_error>

class Client {
public:
    Client(asyncverbs::EpollExecutor& loop, const asyncverbs::Context& context)
        : domain_(context), memory_(asyncverbs::MemoryRegion::allocate(domain_, 8)),
          router_(asyncverbs::Router::create(context, 32, loop)), qp_(router_, domain_) {}

    asyncverbs::QueuePair& queue_pair() { return qp_.queue_pair(); }

    // The answer to `request`. Repeats a request that the device rejects for lack of memory.
    asyncverbs::Task<std::uint32_t> ask(std::uint32_t request) {
        asyncverbs::Operation answer = qp_.post_recv(memory_.slice(4, 4));
        std::memcpy(memory_.bytes().data(), &request, 4);
        std::error_code error;
        for (int attempt = 0; attempt < 3; ++attempt) {
            asyncverbs::Operation sent = qp_.send(memory_.slice(0, 4));
            co_await sent.wait(error);
            if (error != std::errc::not_enough_memory) break;
        }
        if (error) throw std::system_error(error, "the request was not sent");
        co_await answer;
        std::uint32_t number = 0;
        std::memcpy(&number, memory_.bytes().data() + 4, 4);
        co_return number;
    }

private:
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::MemoryRegion memory_;
    asyncverbs::Router router_;
    asyncverbs::AsyncQp qp_;
};
