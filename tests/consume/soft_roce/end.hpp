// SPDX-License-Identifier: MIT
// One end of a connection: a queue pair with awaitable operations, and its buffer.
#pragma once

#include <asyncverbs/rdma.hpp>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

struct End {
    End(asyncverbs::EpollExecutor& loop, const asyncverbs::Context& context)
        : domain(context), memory(asyncverbs::MemoryRegion::allocate(domain, size)),
          router(asyncverbs::Router::create(context, 64, loop)), qp(router, domain) {}

    asyncverbs::Operation post_recv() { return qp.post_recv(memory.slice(0, size)); }

    asyncverbs::Operation send(std::string_view text) {
        std::memcpy(memory.bytes().data(), text.data(), text.size());
        return qp.send(memory.slice(0, text.size()));
    }

    void expect(std::string_view text, const asyncverbs::Completion& received) const {
        const char* const bytes = reinterpret_cast<const char*>(memory.bytes().data());
        const std::string_view got(bytes, received.bytes());
        if (got != text) throw std::runtime_error("received \"" + std::string(got) + '"');
    }

    static constexpr std::size_t size = 64;

    asyncverbs::ProtectionDomain domain;
    asyncverbs::MemoryRegion memory;
    asyncverbs::Router router;
    asyncverbs::AsyncQp qp;
};
