// SPDX-License-Identifier: MIT
// One end of the connection, without the waiting: device, memory and queue pair.
#pragma once

#include "options.hpp"

#include <asyncverbs/asyncverbs.hpp>

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace pingpong {

/// The wr_id of the two kinds of work requests.
enum WorkRequest : std::uint64_t { receive_id = 1, send_id = 2 };

/// Opens the device and checks the options against its limits. Throws std::exception.
inline asyncverbs::Context open_device(const Options& options) {
    asyncverbs::Context context = asyncverbs::Context::open(options.device);
    const ibv_device_attr device = context.query_device();
    const ibv_port_attr port = context.query_port(options.ib_port);
    const std::string port_name =
        "port " + std::to_string(options.ib_port) + " of " + context.name();
    const auto check = [](const std::string& option, std::uint32_t value, std::uint32_t limit,
                          const std::string& whose) {
        if (value <= limit) return;
        throw std::runtime_error(option + " " + std::to_string(value) + " is too much: " + whose +
                                 " takes at most " + std::to_string(limit));
    };
    const int depth = std::min(device.max_qp_wr, device.max_cqe - 1); // one entry for the send
    check("--rx-depth", options.rx_depth, static_cast<std::uint32_t>(depth), context.name());
    check("--size", options.size, port.max_msg_sz, port_name);
    if (asyncverbs::Context::is_active(port)) { // only then active_mtu is valid
        check("--mtu", options.mtu, 128u << port.active_mtu, port_name);
    }
    return context;
}

/// One send and all receives may complete before the completion queue is polled.
inline int cq_depth(const Options& options) { return static_cast<int>(options.rx_depth) + 1; }

class Endpoint {
public:
    /// `cq` has cq_depth() entries. All receives are posted when this returns.
    Endpoint(const asyncverbs::Context& context, const asyncverbs::CompletionQueue& cq,
             const Options& options)
        : options_(options),
          // The server sends each message back from where it was received.
          incoming_at_(options.is_client() ? options.size : 0), domain_(context),
          region_(asyncverbs::MemoryRegion::allocate(domain_, incoming_at_ + options.size)),
          queue_pair_(domain_, cq, cq, {.max_send_wr = 1, .max_recv_wr = options.rx_depth}) {
        if (options.size <= queue_pair_.granted().max_inline_data) send_flags_ |= IBV_SEND_INLINE;
        fill_memory();
        queue_pair_.init({.port = options.ib_port, .gid_index = options.gid_index, .access = 0});
        fill_receives();
    }
    Endpoint(const Endpoint&) = delete;
    Endpoint& operator=(const Endpoint&) = delete;

    asyncverbs::QueuePairAddress local_address() const { return queue_pair_.local_address(); }
    void connect(const asyncverbs::QueuePairAddress& remote) {
        asyncverbs::RtrOptions options;
        options.path_mtu = options_.path_mtu();
        options.service_level = static_cast<std::uint8_t>(options_.service_level);
        queue_pair_.connect(remote, options);
    }

    void post_send() { queue_pair_.post_send(send_id, outgoing_, send_flags_); }

    /// Counts a receive that has completed, and posts new ones when only one is left.
    void use_receive() {
        if (--receives_ <= 1) fill_receives();
    }

    /// Throws std::runtime_error unless the last message received is that of a client with --chk.
    void check_received() const {
        for (std::size_t i = 0; i < incoming_.length; ++i) {
            const std::byte expected = i % page_size_ == 0 ? page_start : filler;
            if (incoming_.address[i] == expected) continue;
            const auto text = [](std::byte b) { return std::to_string(std::to_integer<int>(b)); };
            throw std::runtime_error("invalid data in page " + std::to_string(i / page_size_) +
                                     ": byte " + std::to_string(i) + " is " +
                                     text(incoming_.address[i]) + " instead of " + text(expected) +
                                     (options_.is_client() ? "" : " (the client needs --chk too)"));
        }
    }

    asyncverbs::QueuePair& queue_pair() noexcept { return queue_pair_; }

private:
    // ibv_rc_pingpong fills messages with this byte; --chk sets the first one of each page to 0.
    static constexpr std::byte filler{0x7b};
    static constexpr std::byte page_start{0};
    // Not a byte of any message, so that the check notices bytes that were not received.
    static constexpr std::byte untouched{0x55};

    void fill_memory() {
        std::ranges::fill(incoming_.bytes(), untouched);
        if (!options_.is_client()) return;
        std::ranges::fill(outgoing_.bytes(), filler);
        for (std::size_t i = 0; options_.check && i < outgoing_.length; i += page_size_) {
            outgoing_.address[i] = page_start;
        }
    }
    void fill_receives() {
        for (; receives_ < options_.rx_depth; ++receives_) {
            queue_pair_.post_recv(receive_id, incoming_);
        }
    }

    const Options& options_;
    std::size_t page_size_ = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    std::size_t incoming_at_;
    asyncverbs::ProtectionDomain domain_;
    asyncverbs::MemoryRegion region_;
    asyncverbs::Slice outgoing_ = region_.slice(0, options_.size);
    asyncverbs::Slice incoming_ = region_.slice(incoming_at_, options_.size);
    unsigned send_flags_ = IBV_SEND_SIGNALED;
    std::uint32_t receives_ = 0;       // posted and not completed
    asyncverbs::QueuePair queue_pair_; // last: destroyed before the memory that it may write
};

} // namespace pingpong
