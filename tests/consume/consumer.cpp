// SPDX-License-Identifier: MIT
// A program with two files that include the library.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <cstdio>

int devices();

static void handle(const ibv_wc& wc) { std::printf("%d\n", wc.status); }

// [readme:serve]
asyncverbs::Task<> serve(asyncverbs::EpollExecutor& loop, const asyncverbs::Context& context) {
    auto cq = asyncverbs::AsyncCq::create(context, 1024, loop);
    // … create queue pairs on cq.completion_queue(), connect them, post to them
    for (ibv_wc wcs[16]; true;) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) handle(wc); // waits in the loop's epoll
    }
}
// [/readme:serve]

int main() {
    asyncverbs::EpollExecutor executor;
    const int found = devices();
    std::printf("%d RDMA devices\n", found);
    return found == static_cast<int>(asyncverbs::DeviceList().size()) ? 0 : 1;
}
