// SPDX-License-Identifier: MIT
// A stream with a peer that sends arbitrary messages. In the input, each message is one byte with
// its length, then its bytes. Checks that the stream reads the data that was sent, in order, reads
// the end only if it was sent, and reports bad messages by one of the documented errors.
#include <asyncverbs/rdma/stream.hpp>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "fuzz/require.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using fuzz::require;
using support::Coroutine;

void asyncverbs::simulated::report_problem(const std::string& problem) {
    require(false, problem.c_str());
}

namespace {

constexpr StreamOptions options{.buffer_size = 20, .buffers = 3};
constexpr std::size_t longest = 32;
constexpr std::size_t most_messages = 24;

using Message = std::span<const std::uint8_t>;

std::vector<Message> messages_of(Message input) {
    std::vector<Message> messages;
    while (!input.empty() && messages.size() < most_messages) {
        const std::size_t length = input[0] % (longest + 1);
        input = input.subspan(1);
        messages.push_back(input.first(std::min(length, input.size())));
        input = input.subspan(messages.back().size());
    }
    return messages;
}

struct Outcome {
    std::string text;
    bool ended = false;
    std::error_code error;
};

Coroutine read(Stream& stream, Outcome& outcome) {
    std::array<std::byte, 7> buffer{};
    try {
        while (const std::size_t count = co_await stream.read_some(buffer)) {
            outcome.text.append(reinterpret_cast<const char*>(buffer.data()), count);
        }
        outcome.ended = true;
    } catch (const std::system_error& error) {
        outcome.error = error.code();
    }
}

Coroutine write(Stream& stream, std::error_code& failure) {
    const std::array<std::byte, 100> bytes{};
    try {
        co_await stream.write_all(bytes);
        for (int i = 0; i < 50; ++i) co_await stream.write_all(std::span(bytes).first(2));
        co_await stream.shutdown_write();
    } catch (const std::system_error& error) {
        failure = error.code();
    }
}

bool documented(std::error_code error) {
    return !error || error == std::errc::protocol_error || error == std::errc::broken_pipe ||
           error.category() == wc_status_category();
}

// A message that a stream never sends, or does not send at this point.
bool is_wrong(Message message, bool is_first, bool after_end) {
    if (message.size() < 4 || message[0] < 1 || message[0] > 5 || message[1] != 0) return true;
    if ((message[0] == 1) != is_first) return true;
    const bool carries_something = message[0] <= 2;
    if ((message.size() > 4) != carries_something) return true;
    return after_end && (message[0] == 2 || message[0] == 4);
}

void check(std::span<const Message> messages, const Outcome& outcome) {
    std::string data;
    bool may_end = false;
    for (const Message& message : messages) {
        if (is_wrong(message, &message == messages.data(), may_end))
            break; // nothing after it is read
        if (message[0] == 2) data.append(message.begin() + 4, message.end());
        if (message[0] >= 4) may_end = true;
    }
    require(data.starts_with(outcome.text), "what is read is what was sent");
    require(!outcome.ended || may_end, "the end is read where it was sent");
    require(documented(outcome.error), "the documented errors");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* input, std::size_t size) {
    const std::vector<Message> messages = messages_of({input, size});
    const simulated::SimulatedVerbs sim;
    ManualNotifier notifier;
    const Context context = Context::open();
    const ProtectionDomain domain(context);
    Router router(AsyncCq(CompletionQueue(context, 128), notifier));
    AsyncQp qp(router, domain, Stream::queue_pair_options(options));
    qp.queue_pair().init();
    Stream stream(std::move(qp), domain, options);

    std::array<std::byte, longest*(most_messages + 1)> memory{};
    const MemoryRegion region(domain, memory);
    AsyncQp peer(router, domain, {.max_send_wr = most_messages, .max_recv_wr = 16});
    peer.queue_pair().init();
    peer.queue_pair().connect(stream.queue_pair().local_address(), {}, {.rnr_retry = 0});
    stream.queue_pair().connect(peer.queue_pair().local_address(), {}, {.rnr_retry = 0});
    std::vector<Operation> operations;
    for (int i = 0; i < 16; ++i) operations.push_back(peer.recv(region.slice(0, longest)));

    Outcome outcome;
    std::error_code write_error;
    const Coroutine reader = read(stream, outcome);
    const Coroutine writer = write(stream, write_error);
    for (std::size_t i = 0; i < messages.size(); ++i) {
        const Slice slice = region.slice(longest * (i + 1), messages[i].size());
        std::ranges::copy(std::as_bytes(messages[i]), slice.address);
        operations.push_back(peer.send(slice));
        notifier.notify();
        notifier.run();
    }
    check(messages, outcome);
    require(documented(write_error), "the documented errors");
    return 0;
}
