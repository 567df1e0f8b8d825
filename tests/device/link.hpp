// SPDX-License-Identifier: MIT
// Two guests on a link. A TCP connection over the same link synchronizes their tests.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <regex>
#include <stdexcept>
#include <string>
#include <thread>

#include "../examples/02_rc_pingpong/handshake.hpp"
#include "device/end.hpp"
#include "device/environment.hpp"

namespace asyncverbs::device {

// 0 or 1.
inline const int guest = std::stoi(environment("SOFT_ROCE_GUEST"));

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
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
    }

    asio::ip::tcp::iostream connection_ = connect();
};

inline std::string run_command(const std::string& command) {
    const std::string all = "PATH=$PATH:/usr/sbin:/sbin; " + command;
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(all.c_str(), "r"), ::pclose);
    std::string output;
    for (int c; (c = std::fgetc(pipe.get())) != EOF;) output += static_cast<char>(c);
    return output;
}

inline void configure(const std::string& command) {
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

} // namespace asyncverbs::device
