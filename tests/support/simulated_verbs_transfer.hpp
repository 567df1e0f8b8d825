// SPDX-License-Identifier: MIT
//
// What moving one work request is made of: reaching the memory that it names, taking a receive, and
// writing completions. Used by the transport of the simulated verbs.
#pragma once

#include "support/simulated_verbs_state.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace asyncverbs::simulated {

using Bytes = std::vector<std::byte>;

// The bytes of a responder's region, if key, protection domain, range and access allow it.
std::byte* remote_bytes(const Simulation& simulation, const QueuePair& responder,
                        std::uint64_t address, std::uint32_t rkey, std::uint64_t length,
                        unsigned int access);

std::size_t total_length(const std::vector<ibv_sge>& sges);

// Between the memory of a request and bytes on the wire. False: a local protection error.
bool gather(const Simulation& simulation, const QueuePair& qp, const SendRequest& request,
            Bytes& data);
bool scatter(const Simulation& simulation, const QueuePair& qp, const std::vector<ibv_sge>& sges,
             std::span<const std::byte> data);

// The first send of the queue pair is done.
void complete_send(Simulation& simulation, QueuePair& qp, ibv_wc_status status,
                   std::size_t byte_len = 0);

// The next request of the receive queue, which is not empty; then that it is done.
ReceiveRequest take_receive(Simulation& simulation, QueuePair& qp);
void complete_receive(Simulation& simulation, QueuePair& qp, CompletionQueue::Entry entry);

} // namespace asyncverbs::simulated
