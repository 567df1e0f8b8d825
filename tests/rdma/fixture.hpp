// SPDX-License-Identifier: MIT
// Two connected AsyncQps on one router, with a loop that the test runs by hand.
#pragma once

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
#include <asyncverbs/verbs/memory.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

namespace asyncverbs::support {

constexpr int all_access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
                           IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

// The outcome of an operation.
struct Awaited {
    std::optional<Completion> completion;
    std::optional<OperationError> operation_error;
    std::optional<std::system_error> error; // any other

    bool done() const { return completion || operation_error || error; }
    std::error_code code() const {
        if (operation_error) return operation_error->code();
        return error ? error->code() : std::error_code();
    }
};

// Owns the operation, or, as await<Operation&>(), refers to one that outlives it.
template <class Awaitable>
Coroutine await(Awaitable operation, Awaited& outcome, std::stop_token stop = {}) {
    try {
        outcome.completion = co_await operation.wait(std::move(stop));
    } catch (const OperationError& error) {
        outcome.operation_error = error;
    } catch (const std::system_error& error) {
        outcome.error = error;
    }
}

inline Coroutine await_drain(AsyncQp& qp, Awaited& outcome) {
    try {
        co_await qp.drain();
        outcome.completion.emplace();
    } catch (const std::system_error& error) {
        outcome.error = error;
    }
}

// Starts await() and holds the outcome.
struct Awaiting : Awaited {
    template <class Awaitable>
    explicit Awaiting(Awaitable operation, std::stop_token stop = {})
        : coroutine(await(std::move(operation), *this, std::move(stop))) {}
    Awaiting(const Awaiting&) = delete;
    Awaiting& operator=(const Awaiting&) = delete;

    Coroutine coroutine;
};

struct Draining : Awaited {
    explicit Draining(AsyncQp& qp) : coroutine(await_drain(qp, *this)) {}
    Draining(const Draining&) = delete;
    Draining& operator=(const Draining&) = delete;

    Coroutine coroutine;
};

struct RouterFixture {
    explicit RouterFixture(const simulated::ProviderModel& provider = simulated::rxe,
                           const QueuePairOptions& options = {.max_send_wr = 4,
                                                              .max_recv_wr = 4,
                                                              .max_send_sge = 3,
                                                              .max_recv_sge = 3,
                                                              .max_inline_data = 64})
        : sim(provider), router(std::in_place, AsyncCq(CompletionQueue(context, 256), notifier)),
          a(std::in_place, *router, domain, options), b(std::in_place, *router, domain, options) {
        native = router->completion_queue().native_handle();
        if (options.type == IBV_QPT_UD) {
            a->queue_pair().activate();
            b->queue_pair().activate();
        } else {
            a->queue_pair().init({.access = all_access});
            b->queue_pair().init({.access = all_access});
            a->queue_pair().connect(b->queue_pair().local_address());
            b->queue_pair().connect(a->queue_pair().local_address());
        }
    }

    // Calls `function` in a coroutine that the router resumes, so while it delivers a batch.
    template <class Function>
    void run_in_batch(Function function) {
        AsyncQp other(*router, domain, {.max_send_wr = 1, .max_recv_wr = 1});
        other.queue_pair().init();
        Operation receive = other.recv(Slices());
        std::stop_source stop;
        std::error_code error;
        const auto call = [&]() -> Coroutine {
            co_await receive.wait(error, stop.get_token());
            function();
        };
        const Coroutine coroutine = call();
        stop.request_stop();
        notifier.run();
        REQUIRE(coroutine.done());
        coroutine.get();
    }

    // Runs the loop until nothing is left to do.
    void run() {
        for (int i = 0; i < 8; ++i) {
            notifier.notify();
            notifier.run();
        }
    }

    void write(std::size_t at, std::string_view text) {
        std::memcpy(memory.data() + at, text.data(), text.size());
    }
    std::uint64_t number(std::size_t at) const {
        std::uint64_t value = 0;
        std::memcpy(&value, memory.data() + at, 8);
        return value;
    }
    void write_number(std::size_t at, std::uint64_t value) {
        std::memcpy(memory.data() + at, &value, 8);
    }
    std::string_view read(std::size_t at, std::size_t length) const {
        return {reinterpret_cast<const char*>(memory.data()) + at, length};
    }
    RemoteSlice remote(std::size_t at, std::size_t length) const {
        return region->remote_slice().slice(at, length);
    }
    Slice slice(std::size_t at, std::size_t length) const { return region->slice(at, length); }

    alignas(8) std::array<std::byte, 512> memory{};
    simulated::SimulatedVerbs sim;
    ManualNotifier notifier;
    Context context = Context::open();
    ProtectionDomain domain{context};
    std::optional<MemoryRegion> region{std::in_place, domain, memory, all_access};
    std::optional<Router> router;
    std::optional<AsyncQp> a;
    std::optional<AsyncQp> b;
    ibv_cq* native = nullptr;
};

} // namespace asyncverbs::support
