// SPDX-License-Identifier: MIT
//
// The objects that most tests of the simulated verbs need, made and released by plain verbs calls,
// in the order that the real library demands.
#pragma once

#include "support/catch.hpp"
#include "support/simulated_verbs.hpp"

#include <infiniband/verbs.h>

#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <vector>

namespace asyncverbs::simulated {

// A device, opened.
struct OpenDevice {
    explicit OpenDevice(const ProviderModel& provider = rxe) : sim(provider) { open(); }
    explicit OpenDevice(const std::vector<DeviceOptions>& devices) : sim(devices) { open(); }
    ~OpenDevice() { CHECK(ibv_close_device(context) == 0); }
    OpenDevice(const OpenDevice&) = delete;
    OpenDevice& operator=(const OpenDevice&) = delete;

    SimulatedVerbs sim;
    ibv_context* context = nullptr;

private:
    void open() {
        ibv_device** list = ibv_get_device_list(nullptr);
        context = ibv_open_device(list[0]);
        ibv_free_device_list(list);
    }
};

// A completion queue of 8 with its channel, which is non-blocking.
struct OpenCq : OpenDevice {
    explicit OpenCq(const ProviderModel& provider = rxe) : OpenDevice(provider) {
        channel = ibv_create_comp_channel(context);
        ::fcntl(channel->fd, F_SETFL, ::fcntl(channel->fd, F_GETFL) | O_NONBLOCK);
        cq = ibv_create_cq(context, 8, this, channel, 0);
    }
    ~OpenCq() {
        if (cq != nullptr) {
            CHECK(ibv_destroy_cq(cq) == 0);
        }
        CHECK(ibv_destroy_comp_channel(channel) == 0);
    }

    // wr_id of each completion that one poll returns.
    std::vector<std::uint64_t> poll(int entries = 16) {
        std::array<ibv_wc, 16> wcs;
        const int count = ibv_poll_cq(cq, entries, wcs.data());
        std::vector<std::uint64_t> ids;
        for (int index = 0; index < count; ++index) {
            ids.push_back(wcs[static_cast<std::size_t>(index)].wr_id);
        }
        return ids;
    }

    // Reads one event; 0 or the errno.
    int get_event() {
        ibv_cq* of = nullptr;
        void* of_context = nullptr;
        if (ibv_get_cq_event(channel, &of, &of_context) != 0) {
            return errno;
        }
        CHECK(of == cq);
        CHECK(of_context == this);
        return 0;
    }

    int get_and_ack() {
        const int error = get_event();
        if (error == 0) {
            ibv_ack_cq_events(cq, 1);
        }
        return error;
    }

    ibv_comp_channel* channel = nullptr;
    ibv_cq* cq = nullptr;
};

// What epoll says about a descriptor, now.
class Epoll {
public:
    explicit Epoll(int fd, std::uint32_t flags = 0) : epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
        epoll_event event{};
        event.events = EPOLLIN | flags;
        REQUIRE(::epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0);
    }
    ~Epoll() { ::close(epoll_); }
    Epoll(const Epoll&) = delete;
    Epoll& operator=(const Epoll&) = delete;

    std::uint32_t events(int timeout_ms = 0) {
        epoll_event event{};
        return ::epoll_wait(epoll_, &event, 1, timeout_ms) == 1 ? std::uint32_t{event.events} : 0u;
    }

private:
    int epoll_;
};

} // namespace asyncverbs::simulated
