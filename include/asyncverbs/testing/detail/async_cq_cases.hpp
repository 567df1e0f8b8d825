// SPDX-License-Identifier: MIT
// Two connected queue pairs of one device, each with an AsyncCq on the loop of the conformance
// suite: what is posted to the one is awaited at the other.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>

namespace asyncverbs::detail::conformance {

template <class Harness>
class Pair {
public:
    static constexpr std::uint32_t depth = 32; // messages on the way

    Pair(Bench<Harness>& bench, const Context& context, const AsyncCqOptions& options = {})
        : bench_(bench), domain_(context), memory_(MemoryRegion::allocate(domain_, 8)),
          send_cq(std::in_place, AsyncCq::create(context, 2 * depth, bench.harness(), options)),
          recv_cq(std::in_place, AsyncCq::create(context, 2 * depth, bench.harness(), options)),
          sender_(domain_, send_cq->completion_queue(), send_cq->completion_queue(), wanted()),
          receiver_(domain_, recv_cq->completion_queue(), recv_cq->completion_queue(), wanted()) {
        sender_.connect(receiver_.local_address());
        receiver_.connect(sender_.local_address());
    }

    void post_recv(std::uint64_t id) { receiver_.post_recv({id, nullptr, &message_, 1}); }

    /// From any thread, one at a time. What goes wrong is seen in vain.
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

    /// What a coroutine has taken so far, and the error that it has ended with.
    struct Taken {
        std::vector<std::uint64_t> ids;
        std::error_code error;
    };

    /// Takes `count` completions, or as many as come before a stop.
    Coroutine take(AsyncCq& cq, std::size_t count, Taken& taken, std::stop_token stop = {}) {
        std::array<ibv_wc, 4> wcs;
        while (taken.ids.size() < count) {
            const std::span<ibv_wc> some = co_await cq.poll(wcs, taken.error, stop);
            bench_.witness().resumed();
            if (taken.error) co_return;
            for (const ibv_wc& wc : some) {
                if (wc.status != IBV_WC_SUCCESS) bench_.witness().report("a work request failed");
                taken.ids.push_back(wc.wr_id);
            }
        }
    }

private:
    static QueuePairOptions wanted() {
        QueuePairOptions options;
        options.max_send_wr = options.max_recv_wr = depth;
        return options;
    }

    Bench<Harness>& bench_;
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

// The conformance suite on a device: an AsyncCq that waits with the notifier delivers each
// completion once, whoever is stopped or destroyed meanwhile.

template <class Harness>
struct AsyncCqCases {
    using Bench = conformance::Bench<Harness>;
    using Pair = conformance::Pair<Harness>;
    using Taken = typename Pair::Taken;
    using Ids = std::vector<std::uint64_t>;

    static void finish(Bench& bench, const Coroutine& coroutine, const char* what) {
        bench.run_until([&] { return coroutine.done(); }, what);
    }

    // One message from end to end, both awaited.
    static void exchange(Bench& bench, Pair& pair, std::uint64_t id) {
        Taken received;
        Taken sent;
        pair.post_recv(id);
        const Coroutine receiver = pair.take(*pair.recv_cq, 1, received);
        const Coroutine sender = pair.take(*pair.send_cq, 1, sent);
        pair.post_send(id);
        finish(bench, receiver, "the completion of a receive");
        finish(bench, sender, "the completion of a send");
        expect(received.ids == Ids{id} && sent.ids == Ids{id}, "another completion was delivered");
    }

    static void one_at_a_time(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        for (std::uint64_t id = 0; id < 1'000; ++id) exchange(bench, pair, id);
    }

    // Each message comes when the coroutine waits again, which it does as soon as it was resumed.
    static void one_coroutine(Bench& bench, const Context& context) {
        constexpr std::uint64_t count = 200;
        Pair pair(bench, context);
        Taken received;
        Taken sent;
        const Coroutine receiver = pair.take(*pair.recv_cq, count, received);
        const Coroutine sender = pair.take(*pair.send_cq, count, sent);
        for (std::uint64_t id = 0; id < count; ++id) {
            pair.post_recv(id);
            pair.post_send(id);
            const auto has_come = [&] { return received.ids.size() > id && sent.ids.size() > id; };
            bench.run_until(has_come, "the next completion for the same coroutine");
            expect(received.ids.back() == id && sent.ids.back() == id, "another completion");
        }
        expect(receiver.done() && sender.done(), "there was more than was sent");
    }

    static void bursts(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        Ids all;
        for (std::uint64_t id = 0; id < Pair::depth; ++id) all.push_back(id);
        for (int burst = 0; burst < 20; ++burst) {
            Taken received;
            Taken sent;
            const Coroutine receiver = pair.take(*pair.recv_cq, all.size(), received);
            for (const std::uint64_t id : all) pair.post_recv(id);
            for (const std::uint64_t id : all) pair.post_send(id);
            const Coroutine sender = pair.take(*pair.send_cq, all.size(), sent);
            finish(bench, receiver, "the last completion of a burst of receives");
            finish(bench, sender, "the last completion of a burst of sends");
            expect(received.ids == all && sent.ids == all, "not each once and in order");
        }
    }

    static void from_another_thread(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        OtherThread other;
        for (std::uint64_t id = 0; id < 300; ++id) {
            pair.post_recv(id);
            other.start([&pair, id] {
                dawdle(static_cast<int>(id));
                pair.post_send(id);
            });
            Taken received;
            Taken sent;
            const Coroutine receiver = pair.take(*pair.recv_cq, 1, received);
            const Coroutine sender = pair.take(*pair.send_cq, 1, sent);
            finish(bench, receiver, "the completion of a message of another thread");
            finish(bench, sender, "the completion of another thread's send");
            other.wait();
            expect(received.ids == Ids{id}, "another completion was delivered");
        }
    }

    static void stopped(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        OtherThread other;
        for (std::uint64_t id = 0; id < 100; ++id) {
            std::stop_source source;
            Taken nothing;
            const Coroutine waiter = pair.take(*pair.recv_cq, 1, nothing, source.get_token());
            if (id % 2 == 0) {
                bench.settle();
                bench.request_stop(source);
            } else {
                other.start([&source] { source.request_stop(); });
            }
            finish(bench, waiter, "that a stop ends the wait");
            other.wait();
            expect(nothing.error == std::errc::operation_canceled, "it was not cancelled");
            exchange(bench, pair, id);
        }
    }

    static void stop_races_with_message(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        OtherThread other;
        for (std::uint64_t id = 0; id < 300; ++id) {
            std::stop_source source;
            Taken received;
            pair.post_recv(id);
            other.start([&pair, &source, id] {
                if (id % 2 == 0) pair.post_send(id);
                dawdle(static_cast<int>(id) / 2);
                source.request_stop();
                if (id % 2 != 0) pair.post_send(id);
            });
            const Coroutine waiter = pair.take(*pair.recv_cq, 1, received, source.get_token());
            finish(bench, waiter, "that a stop or a completion ends the wait");
            other.wait();
            const Coroutine next = pair.take(*pair.recv_cq, 1, received);
            finish(bench, next, "the completion that was not delivered to who was stopped");
            expect(received.ids == Ids{id}, "another completion was delivered");
            Taken sent;
            const Coroutine sender = pair.take(*pair.send_cq, 1, sent);
            finish(bench, sender, "the completion of a send");
        }
    }

    static void waiter_destroyed(Bench& bench, const Context& context) {
        Pair pair(bench, context);
        for (std::uint64_t id = 0; id < 20; ++id) {
            Taken nothing;
            Coroutine waiter = pair.take(*pair.recv_cq, 1, nothing);
            if (id % 2 == 0) bench.settle();
            waiter.destroy();
            exchange(bench, pair, id);
            expect(nothing.ids.empty(), "it was resumed after it was destroyed");
        }
    }

    static void destroyed_with_a_waiter(Bench& bench, const Context& context) {
        for (std::uint64_t id = 0; id < 20; ++id) {
            Pair pair(bench, context);
            if (id % 4 >= 2) exchange(bench, pair, id);
            Taken nothing;
            const Coroutine waiter = pair.take(*pair.recv_cq, 1, nothing);
            if (id % 2 == 0) bench.settle();
            pair.recv_cq.reset();
            if (id % 4 == 0) bench.settle();
            expect(!waiter.done(), "it was resumed after its AsyncCq was destroyed");
        }
    }

    static void destroyed_by_its_coroutine(Bench& bench, const Context& context) {
        struct Local {
            static Coroutine receive(Pair& pair, bool& ended) {
                std::array<ibv_wc, 1> wcs;
                std::error_code error;
                co_await pair.recv_cq->poll(wcs, error);
                pair.recv_cq.reset();
                ended = true;
            }
        };
        for (std::uint64_t id = 0; id < 10; ++id) {
            Pair pair(bench, context);
            pair.post_recv(id);
            bool ended = false;
            const Coroutine waiter = Local::receive(pair, ended);
            bench.settle();
            pair.post_send(id);
            bench.run_until([&] { return ended; }, "the completion of a receive");
            bench.settle();
        }
    }

    static void longest_wait(Bench& bench, const Context& context) {
        AsyncCqOptions options;
        options.max_wait = std::chrono::milliseconds(1);
        Pair pair(bench, context, options);
        for (std::uint64_t id = 0; id < 5; ++id) {
            Taken nothing;
            Coroutine waiter = pair.take(*pair.recv_cq, 1, nothing);
            const std::uint64_t polls = pair.recv_cq->statistics().polls;
            bench.run_until([&] { return pair.recv_cq->statistics().polls >= polls + 3; },
                            "that the CQ is polled again and again");
            expect(!waiter.done(), "it was resumed without a completion");
            waiter.destroy();
            exchange(bench, pair, id);
        }
    }

    static void add_to(CaseList<Harness>& cases, Context device) {
        constexpr std::string_view once = "Each completion is delivered once, and none is lost.";
        constexpr std::string_view stop =
            "operation_canceled if `stop` is requested, from any thread. A completion that was "
            "taken from the CQ is delivered even if `stop` was requested meanwhile.";
        constexpr std::string_view destroyed =
            "It may be destroyed at any time, also by a coroutine that it has just resumed; a "
            "coroutine that still waits is never resumed but may be destroyed.";
        constexpr std::string_view max_wait = "max_wait: the CQ is looked at again by then.";

        const auto context = std::make_shared<const Context>(std::move(device));
        const auto add = [&](std::string_view name, std::string_view clause,
                             void (*body)(Bench&, const Context&)) {
            cases.add(name, clause, [body, context](Bench& bench) { body(bench, *context); });
        };
        add("AsyncCq: one message at a time, 1,000 times", once, one_at_a_time);
        add("AsyncCq: one coroutine that waits 200 times", once, one_coroutine);
        add("AsyncCq: bursts", once, bursts);
        add("AsyncCq: messages of another thread", once, from_another_thread);
        add("AsyncCq: stopped, and the next message", stop, stopped);
        add("AsyncCq: a stop that races with a message", stop, stop_races_with_message);
        add("AsyncCq: a waiter that is destroyed, and the next message", destroyed,
            waiter_destroyed);
        add("AsyncCq: destroyed while a coroutine waits", destroyed, destroyed_with_a_waiter);
        add("AsyncCq: destroyed by the coroutine that it has resumed", destroyed,
            destroyed_by_its_coroutine);
        if constexpr (TimedCqNotifier<typename Bench::Notifier>) {
            add("AsyncCq: a longest wait", max_wait, longest_wait);
        }
    }
};

} // namespace asyncverbs::detail::conformance
