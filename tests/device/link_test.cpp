// SPDX-License-Identifier: MIT
// Two guests on a link that loses packets or is cut. `cmake/soft-roce/run --guests 2` runs these
// tests in both guests.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "device/end.hpp"
#include "device/link.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::device::End;
using asyncverbs::device::guest;
using asyncverbs::device::LinkDown;
using asyncverbs::device::open_device;
using asyncverbs::device::OtherGuest;
using asyncverbs::device::PacketLoss;
using asyncverbs::device::run_bounded;

namespace {

constexpr std::size_t longest = 12'000; // three packets

// The length and bytes of a message. They differ for every message, and for every packet of one.
std::size_t message_length(std::uint64_t number) { return 1 + number * 7919 % longest; }

std::byte message_byte(int sender, std::uint64_t number, std::size_t i) {
    return static_cast<std::byte>(i * 31 + (i >> 8) * 17 + number * 7 + number / 256 +
                                  static_cast<std::uint64_t>(sender) * 101);
}

// This guest's end: sends messages and checks those that it receives.
class Traffic {
public:
    explicit Traffic(OtherGuest& other)
        : context_(open_device()), domain_(context_),
          cq_(AsyncCq::create(context_, End::depth, loop_)), end_(domain_, cq_, longest) {
        other.exchange_addresses(end_);
    }

    void run_until(const std::function<bool()>& done, std::uint64_t messages = UINT64_MAX) {
        run_bounded(loop_, run(done, messages));
    }

    const End& end() const noexcept { return end_; }
    std::uint64_t received() const noexcept { return received_; }

private:
    Task<> run(const std::function<bool()>& done, std::uint64_t messages) {
        std::array<ibv_wc, 8> wcs{};
        fill(messages);
        while (!done()) {
            const std::span<ibv_wc> got = co_await cq_.poll(wcs);
            for (const ibv_wc& wc : got) {
                if (end_.enter(wc) && End::is_receive(wc)) on_received(wc);
            }
            if (end_.errors().empty()) fill(messages);
        }
    }

    void fill(std::uint64_t messages) {
        while (end_.sends_posted() < messages && end_.sends_outstanding() < End::window) {
            const std::uint64_t number = end_.sends_posted();
            const std::span<std::byte> bytes = end_.next_send().first(message_length(number));
            for (std::size_t i = 0; i < bytes.size(); ++i) {
                bytes[i] = message_byte(guest, number, i);
            }
            end_.post_send(bytes.size());
        }
    }

    void on_received(const ibv_wc& wc) {
        const std::span<const std::byte> bytes = end_.received(wc);
        if (bytes.size() != message_length(received_)) {
            throw std::runtime_error("message " + std::to_string(received_) + " has " +
                                     std::to_string(bytes.size()) + " bytes");
        }
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            if (bytes[i] != message_byte(1 - guest, received_, i)) {
                throw std::runtime_error("message " + std::to_string(received_) +
                                         " has another byte " + std::to_string(i));
            }
        }
        ++received_;
        end_.post_recv();
    }

    EpollExecutor loop_;
    Context context_;
    ProtectionDomain domain_;
    AsyncCq cq_;
    End end_;
    std::uint64_t received_ = 0;
};

// Every posted request has completed; after the first error, all completed with errors.
void check_broken(const End& end) {
    CHECK(end.outstanding() == 0);
    CHECK(end.failed_receives() == End::window);
    REQUIRE(end.errors().size() > End::window);
    for (std::size_t i = 1; i < end.errors().size(); ++i) {
        CHECK(end.errors()[i] == IBV_WC_WR_FLUSH_ERR);
    }
}

} // namespace

TEST_CASE("link: messages arrive complete and in order although packets are lost") {
    constexpr std::uint64_t messages = 500;
    const int percent = GENERATE(0, 1, 5);
    CAPTURE(guest, percent);
    OtherGuest other;
    Traffic traffic(other);
    const PacketLoss loss(percent);
    traffic.run_until(
        [&] {
            return traffic.received() == messages && traffic.end().sends_completed() == messages;
        },
        messages);
    CHECK(traffic.end().errors().empty());
    CHECK((PacketLoss::dropped() > 0) == (percent > 0));
    other.meet(); // before that, the other end may retransmit and need an answer
}

TEST_CASE("link: if it is cut, both ends get the cause") {
    const bool down = GENERATE(false, true);
    CAPTURE(guest, down);
    OtherGuest other;
    Traffic traffic(other);
    // Guest 1 cuts the link. Some messages to guest 0 may not have arrived by then.
    if (guest == 1) traffic.run_until([&] { return traffic.received() >= 100; });
    {
        std::unique_ptr<PacketLoss> loss;
        std::unique_ptr<LinkDown> no_link;
        if (guest == 1 && down) no_link = std::make_unique<LinkDown>();
        if (guest == 1 && !down) loss = std::make_unique<PacketLoss>(100);
        traffic.run_until([&] { return traffic.end().outstanding() == 0; });
    }
    check_broken(traffic.end());
    // If its own device is taken down, Linux 6.1 reports a cause first and Linux 6.12 only flushes.
    if (guest != 1 || !down) CHECK(traffic.end().errors().front() == IBV_WC_RETRY_EXC_ERR);
    other.meet();
}
