// SPDX-License-Identifier: MIT
// Two guests on a link that loses packets or is cut. `cmake/soft-roce/run --guests 2` runs these
// tests in both guests; a TCP connection over the same link synchronizes them.
#include <asyncverbs/cq/async_cq.hpp>

#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <regex>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

#include "../examples/02_rc_pingpong/handshake.hpp"
#include "device/end.hpp"
#include "device/environment.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;
using asyncverbs::device::End;
using asyncverbs::device::environment;
using asyncverbs::device::open_device;
using asyncverbs::device::run_bounded;

namespace {

// 0 or 1.
const int guest = std::stoi(environment("SOFT_ROCE_GUEST"));

// The connection to the other guest's test. If one end fails, the other fails, too.
class OtherGuest {
public:
    void exchange_addresses(End& end) {
        pingpong::send(connection_, pingpong::to_wire(end.address()));
        end.connect(pingpong::from_wire(pingpong::receive(connection_, pingpong::wire_size)));
        meet();
    }

    void meet() {
        pingpong::send(connection_, "+");
        pingpong::receive(connection_, 1);
    }

private:
    static constexpr std::uint16_t port = 18600;
    static constexpr std::chrono::seconds bound{120};

    static asio::ip::tcp::iostream connect() {
        asio::ip::tcp::iostream other;
        if (guest == 0) {
            asio::io_context io;
            pingpong::listen(io, port).accept(other.socket());
            pingpong::set_deadline(other, bound);
            return other;
        }
        pingpong::set_deadline(other, bound);
        for (const auto deadline = std::chrono::steady_clock::now() + bound;;) {
            try {
                pingpong::connect(other, environment("RDMA_PEER_ADDRESS"), port);
                pingpong::set_deadline(other, bound);
                return other;
            } catch (const std::runtime_error&) { // it does not listen yet
                if (std::chrono::steady_clock::now() > deadline) throw;
            }
            std::this_thread::sleep_for(50ms);
        }
    }

    asio::ip::tcp::iostream connection_ = connect();
};

std::string run_command(const std::string& command) {
    const std::string all = "PATH=$PATH:/usr/sbin:/sbin; " + command;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(all.c_str(), "r"), ::pclose);
    std::string output;
    for (int c; (c = std::fgetc(pipe.get())) != EOF;) output += static_cast<char>(c);
    return output;
}

void configure(const std::string& command) {
    if (std::system(("PATH=$PATH:/usr/sbin:/sbin; " + command).c_str()) != 0) {
        throw std::runtime_error("failed: " + command);
    }
}

// Drops this percentage of the packets that leave this guest.
class PacketLoss {
public:
    explicit PacketLoss(int percent) {
        configure("tc qdisc replace dev roce0 root netem limit 10000 loss " +
                  std::to_string(percent) + "%");
    }
    PacketLoss(const PacketLoss&) = delete;
    PacketLoss& operator=(const PacketLoss&) = delete;
    ~PacketLoss() { std::system("PATH=$PATH:/usr/sbin:/sbin; tc qdisc del dev roce0 root"); }

    static int dropped() {
        const std::string statistics = run_command("tc -s qdisc show dev roce0");
        std::smatch found;
        if (!std::regex_search(statistics, found, std::regex("dropped ([0-9]+)"))) {
            throw std::runtime_error("no count of dropped packets in: " + statistics);
        }
        return std::stoi(found[1]);
    }
};

class LinkDown {
public:
    LinkDown() { configure("ip link set roce0 down"); }
    LinkDown(const LinkDown&) = delete;
    LinkDown& operator=(const LinkDown&) = delete;
    ~LinkDown() { std::system("PATH=$PATH:/usr/sbin:/sbin; ip link set roce0 up"); }
};

constexpr std::size_t longest = 12'000; // three packets

// The length and bytes of a message. They differ for every message, and for every packet of one.
std::size_t message_length(std::uint64_t number) { return 1 + number * 7919 % longest; }

std::byte message_byte(int sender, std::uint64_t number, std::size_t i) {
    return static_cast<std::byte>(i * 31 + (i >> 8) * 17 + number * 7 + number / 256 +
                                  static_cast<std::uint64_t>(sender) * 101);
}

// This guest's end: sends messages and checks those that it receives.
class Stream {
public:
    explicit Stream(OtherGuest& other)
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
    Stream stream(other);
    const PacketLoss loss(percent);
    stream.run_until(
        [&] { return stream.received() == messages && stream.end().sends_completed() == messages; },
        messages);
    CHECK(stream.end().errors().empty());
    CHECK((PacketLoss::dropped() > 0) == (percent > 0));
    other.meet(); // before that, the other end may retransmit and need an answer
}

TEST_CASE("link: if it is cut, both ends get the cause") {
    const bool down = GENERATE(false, true);
    CAPTURE(guest, down);
    OtherGuest other;
    Stream stream(other);
    // Guest 1 cuts the link. Some messages to guest 0 may not have arrived by then.
    if (guest == 1) stream.run_until([&] { return stream.received() >= 100; });
    {
        std::unique_ptr<PacketLoss> loss;
        std::unique_ptr<LinkDown> no_link;
        if (guest == 1 && down) no_link = std::make_unique<LinkDown>();
        if (guest == 1 && !down) loss = std::make_unique<PacketLoss>(100);
        stream.run_until([&] { return stream.end().outstanding() == 0; });
    }
    check_broken(stream.end());
    // If its own device is taken down, Linux 6.1 reports a cause first and Linux 6.12 only flushes.
    if (guest != 1 || !down) CHECK(stream.end().errors().front() == IBV_WC_RETRY_EXC_ERR);
    other.meet();
}
