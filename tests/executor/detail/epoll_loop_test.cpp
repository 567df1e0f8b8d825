// SPDX-License-Identifier: MIT
// EpollLoop: what only a race can bring about through the executor.
#include <asyncverbs/executor/detail/epoll_loop.hpp>

#include "support/catch.hpp"
using asyncverbs::detail::EpollLoop;

TEST_CASE("EpollLoop: a run that has ended does not block", "[epoll_loop]") {
    EpollLoop loop;
    const EpollLoop::Run run(loop);
    CHECK(!loop.iterate(false));
    // As if another thread ended the run between two iterations: it finds the loop awake and does
    // not wake it, so the loop has to notice.
    loop.end_run(EpollLoop::stopped);
    CHECK(!loop.iterate(true));
}

TEST_CASE("EpollLoop: a stop does not hide that the task has ended", "[epoll_loop]") {
    EpollLoop loop;
    {
        const EpollLoop::Run run(loop);
        loop.end_run(EpollLoop::task_done);
        loop.end_run(EpollLoop::stopped);
        CHECK((loop.ends() & EpollLoop::task_done) != 0);
    }
    CHECK(loop.ends() == 0);
}
