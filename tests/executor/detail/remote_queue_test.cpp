// SPDX-License-Identifier: MIT
// RemoteQueue: the order of the items, and which push has to wake the loop.
#include <asyncverbs/executor/detail/run_queue.hpp>

#include <memory>
#include <vector>

#include "support/catch.hpp"

using asyncverbs::detail::IntrusiveList;
using asyncverbs::detail::RemoteQueue;
using asyncverbs::detail::WorkItem;

namespace {

std::vector<WorkItem*> drain(IntrusiveList<WorkItem>& list) {
    std::vector<WorkItem*> items;
    while (!list.empty()) {
        items.push_back(&list.front());
        list.front().unlink();
    }
    return items;
}

} // namespace

TEST_CASE("RemoteQueue: the first push to a sleeping loop wakes it", "[remote_queue]") {
    RemoteQueue queue;
    IntrusiveList<WorkItem> ready;
    WorkItem a{nullptr};
    WorkItem b{nullptr};

    SECTION("a new queue is asleep") {
        CHECK(queue.push(a));
        CHECK(!queue.push(b));
        CHECK(!queue.wake());
        queue.take(ready);
        CHECK(drain(ready) == std::vector{&a, &b});
    }
    SECTION("no push to one that is awake does") {
        queue.take(ready);
        CHECK(ready.empty());
        CHECK(!queue.push(a));
        CHECK(!queue.wake());
    }
    SECTION("asleep again, the next push does") {
        queue.take(ready);
        CHECK(queue.sleep());
        CHECK(queue.push(a));
    }
    SECTION("a wake counts as a push") {
        CHECK(queue.wake());
        CHECK(!queue.wake());
        CHECK(!queue.push(a));
        CHECK(!queue.sleep());
    }
    SECTION("it does not fall asleep with work, and may be put to sleep twice") {
        queue.take(ready);
        queue.push(a);
        CHECK(!queue.sleep());
        queue.take(ready);
        CHECK(queue.sleep());
        CHECK(queue.sleep());
        CHECK(queue.wake());
    }
    SECTION("taken while asleep, it stays so") {
        CHECK(queue.push(a));
        queue.take_asleep(ready);
        CHECK(drain(ready) == std::vector{&a});
        CHECK(queue.push(b));
    }
}

TEST_CASE("RemoteQueue: takes in the order of posting, behind what is there", "[remote_queue]") {
    RemoteQueue queue;
    IntrusiveList<WorkItem> ready;
    std::vector<std::unique_ptr<WorkItem>> items;
    std::vector<WorkItem*> expected;
    for (int i = 0; i < 10; ++i) {
        items.push_back(std::make_unique<WorkItem>(nullptr));
        expected.push_back(items.back().get());
        queue.push(*items.back());
        if (i % 4 == 3) queue.take(ready);
    }
    queue.take(ready);
    CHECK(drain(ready) == expected);
}
