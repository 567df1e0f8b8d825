// SPDX-License-Identifier: MIT
// The floor that AsyncCq is measured against: the ping-pong of examples/02_rc_pingpong with the
// same options, handshake, queue pair and work requests, its loop written by hand on plain verbs
// and epoll. Poll first, arm only when empty, level-triggered epoll, one read per wake, batched
// acks.
#include "endpoint.hpp"
#include "handshake.hpp"
#include "options.hpp"

#include <infiniband/verbs.h>

#include <sys/epoll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <system_error>

namespace {

using namespace pingpong;
using asyncverbs::CompletionQueue;

[[noreturn]] void fail(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
}

class RawPingPong {
public:
    RawPingPong(const CompletionQueue& cq, Endpoint& endpoint, const Options& options)
        : cq_(cq.native_handle()), channel_(cq.channel().native_handle()), endpoint_(endpoint),
          options_(options), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        epoll_event event{};
        event.events = EPOLLIN;
        if (epoll_ < 0 || ::epoll_ctl(epoll_, EPOLL_CTL_ADD, channel_->fd, &event) != 0) {
            fail("epoll");
        }
    }
    ~RawPingPong() {
        ibv_ack_cq_events(cq_, unacked_);
        ::close(epoll_);
    }
    RawPingPong(const RawPingPong&) = delete;
    RawPingPong& operator=(const RawPingPong&) = delete;

    void run() {
        bool armed = false;
        ibv_wc wcs[2];
        while (sent_ < options_.iterations || received_ < options_.iterations) {
            if (!sending_ && !receiving_ && sent_ < options_.iterations) send();
            int count = ibv_poll_cq(cq_, 2, wcs);
            if (count == 0 && !armed) {
                if (ibv_req_notify_cq(cq_, 0) != 0) fail("ibv_req_notify_cq");
                armed = true;
                count = ibv_poll_cq(cq_, 2, wcs);
            }
            if (count < 0) fail("ibv_poll_cq");
            if (count == 0) {
                wait();
                armed = false;
            }
            for (int i = 0; i < count; ++i) on_completion(wcs[i]);
        }
    }

    /// How often it slept: one arm, one epoll_wait and one read each.
    std::uint64_t waits() const noexcept { return waits_; }

private:
    void wait() {
        ++waits_;
        epoll_event event;
        while (::epoll_wait(epoll_, &event, 1, -1) < 0) {
            if (errno != EINTR) fail("epoll_wait");
        }
        ibv_cq* source;
        void* context;
        if (ibv_get_cq_event(channel_, &source, &context) != 0) fail("ibv_get_cq_event");
        if (++unacked_ == 16) {
            ibv_ack_cq_events(cq_, unacked_);
            unacked_ = 0;
        }
    }

    void send() {
        ibv_send_wr* bad;
        if (ibv_post_send(queue_pair_, &endpoint_.send_request(), &bad) != 0) {
            fail("ibv_post_send");
        }
        sending_ = receiving_ = true;
    }

    void on_completion(const ibv_wc& wc) {
        if (wc.status != IBV_WC_SUCCESS) throw std::runtime_error(ibv_wc_status_str(wc.status));
        if (wc.wr_id == send_id) {
            ++sent_;
            sending_ = false;
        } else {
            if (wc.byte_len != options_.size) throw std::runtime_error("a message of another size");
            if (--receives_ <= 1) fill_receives();
            ++received_;
            receiving_ = false;
        }
    }

    void fill_receives() {
        ibv_recv_wr* bad;
        for (; receives_ < options_.rx_depth; ++receives_) {
            if (ibv_post_recv(queue_pair_, &endpoint_.receive_request(), &bad)) {
                fail("ibv_post_recv");
            }
        }
    }

    ibv_cq* cq_;
    ibv_comp_channel* channel_;
    Endpoint& endpoint_;
    ibv_qp* queue_pair_ = endpoint_.queue_pair().native_handle();
    const Options& options_;
    int epoll_;
    std::uint64_t waits_ = 0;
    unsigned unacked_ = 0;
    std::uint32_t receives_ = options_.rx_depth; // the endpoint has posted them
    std::uint32_t sent_ = 0;
    std::uint32_t received_ = 0;
    bool sending_ = false;
    bool receiving_ = !options_.is_client();
};

Connection shake_hands(asio::io_context& io, const Options& options, Endpoint& endpoint) {
    const std::chrono::seconds timeout(options.timeout);
    const auto connect = [&](const QueuePairAddress& remote) { endpoint.connect(remote); };
    if (options.is_client()) {
        Connection server = Connection::open(io, *options.host, options.port, timeout);
        shake_hands_as_client(server, endpoint.local_address(), connect);
        return server;
    }
    Connection client(io, listen(io, options.port).accept(), timeout);
    shake_hands_as_server(client, endpoint.local_address(), connect);
    return client;
}

void run(const Options& options) {
    const asyncverbs::Context context = open_device(options);
    const CompletionQueue cq(context, cq_depth(options));
    Endpoint endpoint(context, cq, options);
    asio::io_context io;
    Connection peer = shake_hands(io, options, endpoint);
    RawPingPong game(cq, endpoint, options);
    const auto start = std::chrono::steady_clock::now();
    game.run();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (!options.is_client()) peer.wait_until_closed();
    if (options.check) endpoint.check_received();
    std::printf("%u iters in %.2f seconds = %.2f usec/iter\n", options.iterations, elapsed.count(),
                elapsed.count() * 1e6 / options.iterations);
    std::printf("%.2f waits per iter\n", static_cast<double>(game.waits()) / options.iterations);
}

} // namespace

int main(int argc, char** argv) {
    try {
        Options options;
        CLI::App app;
        add_options(app, options);
        app.parse(argc, argv);
        run(options);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
