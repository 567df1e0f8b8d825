// SPDX-License-Identifier: MIT
#include "endpoint.hpp"

#include <unistd.h>

#include <algorithm>
#include <new>
#include <span>
#include <stdexcept>
#include <string>

namespace pingpong {

namespace {

// ibv_rc_pingpong sends this byte, but for the first one of each page, which its --chk sets to 0.
constexpr std::byte filler{0x7b};
constexpr std::byte page_start{0};

// What no message consists of: bytes that were not received are noticed.
constexpr std::byte untouched{0x55};

void check_limit(const char* option, std::uint64_t value, std::uint64_t limit,
                 const std::string& whose) {
    if (value > limit) {
        throw std::runtime_error(std::string(option) + " " + std::to_string(value) +
                                 " is too much: " + whose + " takes at most " +
                                 std::to_string(limit));
    }
}

std::size_t round_up(std::size_t value, std::size_t unit) {
    return (value + unit - 1) / unit * unit;
}

std::byte* allocate_pages(std::size_t size, std::size_t page_size) {
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(page_size, size));
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}

asyncverbs::QueuePairOptions queue_pair_options(const Options& options) {
    asyncverbs::QueuePairOptions wanted;
    wanted.max_send_wr = 1;
    wanted.max_recv_wr = options.rx_depth;
    return wanted;
}

} // namespace

asyncverbs::Context open_device(const Options& options) {
    asyncverbs::Context context = asyncverbs::Context::open(options.device);
    const ibv_device_attr device = context.query_device();
    const ibv_port_attr port = context.query_port(options.ib_port);
    const std::string name = context.name();
    const std::string port_name = "port " + std::to_string(options.ib_port) + " of " + name;
    check_limit("--rx-depth", options.rx_depth, static_cast<unsigned>(device.max_qp_wr), name);
    check_limit("--rx-depth", options.rx_depth, static_cast<unsigned>(device.max_cqe) - 1, name);
    check_limit("--size", options.size, port.max_msg_sz, port_name);
    if (asyncverbs::Context::is_active(port)) { // else active_mtu means nothing
        check_limit("--mtu", static_cast<unsigned>(mtu_bytes(options.mtu)),
                    static_cast<unsigned>(mtu_bytes(port.active_mtu)), port_name);
    }
    return context;
}

Endpoint::Endpoint(const asyncverbs::Context& context, const asyncverbs::CompletionQueue& cq,
                   const Options& options)
    : options_(options), page_size_(static_cast<std::size_t>(::sysconf(_SC_PAGESIZE))),
      stride_(round_up(options.size, page_size_)), memory_(allocate_pages(2 * stride_, page_size_)),
      domain_(context), region_(domain_, std::span(memory_.get(), 2 * stride_)),
      outgoing_(region_.slice(0, options.size)),
      // The server sends back what it has received, from where it is.
      incoming_(region_.slice(options.is_client() ? stride_ : 0, options.size)),
      send_sge_(outgoing_.sge()), receive_sge_(incoming_.sge()),
      queue_pair_(domain_, cq, cq, queue_pair_options(options)) {
    fill_memory();
    receive_.wr_id = receive_id;
    receive_.sg_list = &receive_sge_;
    receive_.num_sge = 1;
    send_.wr_id = send_id;
    send_.sg_list = &send_sge_;
    send_.num_sge = 1;
    send_.opcode = IBV_WR_SEND;
    send_.send_flags = IBV_SEND_SIGNALED;
    if (options.size <= queue_pair_.granted().max_inline_data) send_.send_flags |= IBV_SEND_INLINE;

    asyncverbs::InitOptions init;
    init.port = options.ib_port;
    init.gid_index = options.gid_index;
    init.access = 0;
    queue_pair_.init(init);
    fill_receives();
}

void Endpoint::connect(const asyncverbs::QueuePairAddress& remote) {
    asyncverbs::RtrOptions receive;
    receive.path_mtu = options_.mtu;
    receive.service_level = options_.service_level;
    queue_pair_.connect(remote, receive);
}

void Endpoint::fill_receives() {
    for (; receives_ < options_.rx_depth; ++receives_) queue_pair_.post_recv(receive_);
}

void Endpoint::fill_memory() {
    std::fill_n(incoming_.address, incoming_.length, untouched);
    if (!options_.is_client()) return;
    std::fill_n(outgoing_.address, outgoing_.length, filler);
    if (!options_.check) return;
    for (std::size_t i = 0; i < outgoing_.length; i += page_size_)
        outgoing_.address[i] = page_start;
}

void Endpoint::check_received() const {
    for (std::size_t i = 0; i < incoming_.length; ++i) {
        const std::byte expected = i % page_size_ == 0 ? page_start : filler;
        if (incoming_.address[i] == expected) continue;
        throw std::runtime_error("invalid data in page " + std::to_string(i / page_size_) +
                                 ": byte " + std::to_string(i) + " is " +
                                 std::to_string(std::to_integer<int>(incoming_.address[i])) +
                                 " instead of " + std::to_string(std::to_integer<int>(expected)) +
                                 (options_.is_client() ? "" : " (the client needs --chk too)"));
    }
}

} // namespace pingpong
