// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs {
namespace detail::conformance {

using Ids = std::vector<std::uint64_t>;

// Two connected queue pairs of one device, each with an AsyncCq on the loop of the fixture: what is
// posted to one is awaited at the other.
template <class Harness>
class Pair {
public:
    static constexpr std::uint32_t depth = 32; // messages in flight

    Pair(Fixture<Harness>& fixture, const Context& context, const AsyncCqOptions& options = {})
        : loop(fixture), domain_(context), memory_(MemoryRegion::allocate(domain_, 8)),
          send_cq(std::in_place, AsyncCq::create(context, 2 * depth, fixture.harness(), options)),
          recv_cq(std::in_place, AsyncCq::create(context, 2 * depth, fixture.harness(), options)),
          sender_(domain_, send_cq->completion_queue(), send_cq->completion_queue(), wanted()),
          receiver_(domain_, recv_cq->completion_queue(), recv_cq->completion_queue(), wanted()) {
        sender_.connect(receiver_.local_address());
        receiver_.connect(sender_.local_address());
    }

    void post_recv(std::uint64_t id) { receiver_.post_recv({id, nullptr, &message_, 1}); }

    /// From any thread, one at a time. A failure shows up as a timeout.
    // NOLINTNEXTLINE(bugprone-exception-escape): sge() throws for slices of 4 GiB alone
    void post_send(std::uint64_t id) noexcept {
        ibv_send_wr request{};
        request.wr_id = id;
        request.sg_list = &message_;
        request.num_sge = 1;
        request.opcode = IBV_WR_SEND;
        request.send_flags = IBV_SEND_SIGNALED;
        std::error_code error;
        sender_.post_send(request, error);
    }

    // What a coroutine has received so far, and the error that it has ended with.
    struct Received {
        Ids ids;
        std::error_code error;
    };

    /// Receives `count` completions, or as many as come before a stop.
    BackgroundCoroutine receive(AsyncCq& cq, std::size_t count, Received& received,
                                std::stop_token stop = {}) {
        std::array<ibv_wc, 4> wcs;
        while (received.ids.size() < count) {
            const std::span<ibv_wc> some = co_await cq.poll(wcs, received.error, stop);
            loop.recorder().resumed();
            if (received.error) co_return;
            for (const ibv_wc& wc : some) {
                if (wc.status != IBV_WC_SUCCESS) loop.recorder().record("a work request failed");
                received.ids.push_back(wc.wr_id);
            }
        }
    }

    void finish(const BackgroundCoroutine& coroutine, const char* expected) {
        loop.run_until([&] { return coroutine.handle().done(); }, expected);
    }

    /// Calls `before`, awaits the completions `ids` at both ends, and calls `after` once both wait.
    template <class Before, class After>
    void exchange(const Ids& ids, const Before& before, const After& after) {
        Received received;
        Received sent;
        before();
        const BackgroundCoroutine receiver = receive(*recv_cq, ids.size(), received);
        const BackgroundCoroutine sender = receive(*send_cq, ids.size(), sent);
        after();
        finish(receiver, "the completion of each receive");
        finish(sender, "the completion of each send");
        expect(received.ids == ids && sent.ids == ids, "not each completion once and in order");
    }
    void exchange(std::uint64_t id) {
        exchange({id}, [&] { post_recv(id); }, [&] { post_send(id); });
    }

    Fixture<Harness>& loop;

private:
    static QueuePairOptions wanted() {
        QueuePairOptions options;
        options.max_send_wr = options.max_recv_wr = depth;
        return options;
    }

    ProtectionDomain domain_;
    MemoryRegion memory_;
    ibv_sge message_ = memory_.slice().sge();

public:
    std::optional<AsyncCq> send_cq;
    std::optional<AsyncCq> recv_cq;

private:
    QueuePair sender_;
    QueuePair receiver_;
};

template <class Harness>
// NOLINTNEXTLINE(readability-function-cognitive-complexity): a list of independent cases
void add_async_cq_cases(CaseList<Harness>& cases, Context device) {
    using Fixture = conformance::Fixture<Harness>;
    using Pair = conformance::Pair<Harness>;
    using Received = typename Pair::Received;

    const auto context = std::make_shared<const Context>(std::move(device));
    // Runs `body` with `pairs` pairs, one after the other, each with the number of its round.
    const auto add = [&](const char* name, const char* clause, std::uint64_t pairs,
                         void (*body)(Pair&, std::uint64_t), const AsyncCqOptions& options = {}) {
        cases.add(name, clause, [pairs, body, context, options](Fixture& fixture) {
            for (std::uint64_t round = 0; round < pairs; ++round) {
                Pair pair(fixture, *context, options);
                body(pair, round);
            }
        });
    };

    constexpr const char* once = "Each completion is delivered once, and none is lost.";
    add("AsyncCq: one message at a time, 1,000 times", once, 1, [](Pair& pair, std::uint64_t) {
        for (std::uint64_t id = 0; id < 1'000; ++id) pair.exchange(id);
    });
    add("AsyncCq: one coroutine that waits 200 times", once, 1, [](Pair& pair, std::uint64_t) {
        constexpr std::uint64_t count = 200;
        Received received;
        Received sent;
        const auto receiver = pair.receive(*pair.recv_cq, count, received);
        const auto sender = pair.receive(*pair.send_cq, count, sent);
        for (std::uint64_t id = 0; id < count; ++id) {
            pair.post_recv(id);
            pair.post_send(id);
            pair.loop.run_until([&] { return received.ids.size() > id && sent.ids.size() > id; },
                                "the next completion for the same coroutine");
            expect(received.ids.back() == id && sent.ids.back() == id, "another completion");
        }
        expect(receiver.handle().done() && sender.handle().done(), "there were more");
    });
    add("AsyncCq: bursts", once, 1, [](Pair& pair, std::uint64_t) {
        Ids all(Pair::depth);
        std::iota(all.begin(), all.end(), std::uint64_t{0});
        const auto post = [&] {
            for (const std::uint64_t id : all) pair.post_recv(id);
            for (const std::uint64_t id : all) pair.post_send(id);
        };
        const auto nothing = [] {};
        for (int burst = 0; burst < 10; ++burst) {
            pair.exchange(all, post, nothing);
            pair.exchange(all, nothing, post);
        }
    });
    add("AsyncCq: messages of another thread", once, 1, [](Pair& pair, std::uint64_t) {
        for (std::uint64_t id = 0; id < 300; ++id) {
            std::jthread other;
            const auto post = [&] {
                pair.post_recv(id);
                other = std::jthread([&pair, id] {
                    spin_for(static_cast<int>(id));
                    pair.post_send(id);
                });
            };
            pair.exchange({id}, post, [] {});
        }
    });

    constexpr const char* stop =
        "operation_canceled if `stop` is requested, from any thread. A completion that was taken "
        "from the CQ is delivered even if `stop` was requested meanwhile.";
    add("AsyncCq: stopped, and the next message", stop, 1, [](Pair& pair, std::uint64_t) {
        for (std::uint64_t id = 0; id < 100; ++id) {
            std::stop_source source;
            Received nothing;
            const auto waiter = pair.receive(*pair.recv_cq, 1, nothing, source.get_token());
            std::jthread other;
            if (id % 2 == 0) {
                pair.loop.settle();
                pair.loop.request_stop(source);
            } else {
                other = std::jthread([&source] { source.request_stop(); });
            }
            pair.finish(waiter, "the end of the wait by a stop");
            expect(nothing.error == std::errc::operation_canceled, "it was not cancelled");
            pair.exchange(id);
        }
    });
    add("AsyncCq: a stop that races with a message", stop, 1, [](Pair& pair, std::uint64_t) {
        for (std::uint64_t id = 0; id < 300; ++id) {
            std::stop_source source;
            Received received;
            Received sent;
            pair.post_recv(id);
            std::jthread other([&pair, &source, id] {
                if (id % 2 == 0) pair.post_send(id);
                spin_for(static_cast<int>(id) / 2);
                source.request_stop();
                if (id % 2 != 0) pair.post_send(id);
            });
            const auto waiter = pair.receive(*pair.recv_cq, 1, received, source.get_token());
            pair.finish(waiter, "the end of the wait by a stop or a completion");
            other.join();
            const auto next = pair.receive(*pair.recv_cq, 1, received);
            pair.finish(next, "the completion that the stopped waiter did not get");
            expect(received.ids == Ids{id}, "another completion");
            const auto sender = pair.receive(*pair.send_cq, 1, sent);
            pair.finish(sender, "the completion of a send");
        }
    });

    constexpr const char* destroyed =
        "It may be destroyed at any time, also by a coroutine that it has just resumed; a "
        "coroutine that still waits is never resumed but may be destroyed.";
    add("AsyncCq: a waiter that is destroyed, and the next message", destroyed, 1,
        [](Pair& pair, std::uint64_t) {
            for (std::uint64_t id = 0; id < 20; ++id) {
                Received nothing;
                BackgroundCoroutine waiter = pair.receive(*pair.recv_cq, 1, nothing);
                if (id % 2 == 0) pair.loop.settle();
                waiter = {};
                pair.exchange(id);
                expect(nothing.ids.empty(), "it was resumed after it was destroyed");
            }
        });
    add("AsyncCq: destroyed while a coroutine waits", destroyed, 20,
        [](Pair& pair, std::uint64_t round) {
            if (round % 4 >= 2) pair.exchange(round);
            Received nothing;
            const auto waiter = pair.receive(*pair.recv_cq, 1, nothing);
            if (round % 2 == 0) pair.loop.settle();
            pair.recv_cq.reset();
            if (round % 4 == 0) pair.loop.settle();
            expect(!waiter.handle().done(), "it was resumed after its AsyncCq was destroyed");
        });
    add("AsyncCq: destroyed by the coroutine that it has resumed", destroyed, 10,
        [](Pair& pair, std::uint64_t round) {
            const auto receive = [](Pair& from, bool& ended) -> BackgroundCoroutine {
                std::array<ibv_wc, 1> wcs;
                std::error_code error;
                co_await from.recv_cq->poll(wcs, error);
                from.recv_cq.reset();
                ended = true;
            };
            pair.post_recv(round);
            bool ended = false;
            const BackgroundCoroutine waiter = receive(pair, ended);
            pair.loop.settle();
            pair.post_send(round);
            pair.loop.run_until([&] { return ended; }, "the completion of a receive");
            pair.loop.settle();
        });

    if constexpr (TimedCqNotifier<typename Fixture::Notifier>) {
        AsyncCqOptions options;
        options.max_wait = std::chrono::milliseconds(1);
        add(
            "AsyncCq: a longest wait", "max_wait: the CQ is polled again after that time.", 1,
            [](Pair& pair, std::uint64_t) {
                for (std::uint64_t id = 0; id < 5; ++id) {
                    Received nothing;
                    BackgroundCoroutine waiter = pair.receive(*pair.recv_cq, 1, nothing);
                    const std::uint64_t polls = pair.recv_cq->statistics().polls;
                    pair.loop.run_until(
                        [&] { return pair.recv_cq->statistics().polls >= polls + 3; },
                        "another poll of the CQ, again and again");
                    expect(!waiter.handle().done(), "it was resumed without a completion");
                    waiter = {};
                    pair.exchange(id);
                }
            },
            options);
    }
}

} // namespace detail::conformance

/// The cases that need a device: an AsyncCq on a loop of the harness (see NotifierHarness) waits
/// for completion channels instead of the pipes of notifier_cases(). Two queue pairs of this
/// process exchange messages. `context` is any device with an active port, real or soft-RoCE
/// (`cmake/soft-roce/run`); the cases keep it open. If the harness also has
/// `notifier(const CompletionChannel&)`, that is called.
template <NotifierHarness H>
std::vector<ConformanceCase> async_cq_cases(Context context,
                                            const ConformanceOptions& options = {}) {
    detail::conformance::CaseList<H> cases(options);
    detail::conformance::add_async_cq_cases(cases, std::move(context));
    return cases.take();
}

/// Runs these cases as run_conformance() does. Returns how many failed, for main() to return:
///
///     int main() {
///         using asyncverbs::check_async_cq, asyncverbs::check_notifier, asyncverbs::Context;
///         return check_notifier<MyHarness>() + check_async_cq<MyHarness>(Context::open());
///     }
template <NotifierHarness H>
int check_async_cq(Context context, const ConformanceOptions& options = {}) {
    return run_conformance(async_cq_cases<H>(std::move(context), options));
}

} // namespace asyncverbs
