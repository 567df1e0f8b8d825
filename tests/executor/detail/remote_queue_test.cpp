// SPDX-License-Identifier: MIT
// RemoteQueue: order, and who has to wake the loop.
#include <asyncverbs/executor/detail/run_queue.hpp>

#include <memory>
#include <vector>

#include "support/catch.hpp"

using asyncverbs::detail::IntrusiveList;
using asyncverbs::detail::RemoteQueue;
using asyncverbs::detail::WorkItem;

namespace {

std::vector<WorkItem*> drain(IntrusiveList<WorkItem>& list) {
    std::vector<WorkItem*> nodes;
    while (!list.empty()) {
        nodes.push_back(&list.front());
        list.front().unlink();
    }
    return nodes;
}

} // namespace

TEST_CASE("RemoteQueue: the first to find the loop asleep wakes it", "[post_queue]") {
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
    SECTION("awake, nobody does") {
        queue.take(ready);
        CHECK(ready.empty());
        CHECK(!queue.push(a));
        CHECK(!queue.wake());
    }
    SECTION("asleep again, one does") {
        queue.take(ready);
        CHECK(queue.sleep());
        CHECK(queue.push(a));
    }
    SECTION("a wake counts as the first") {
        CHECK(queue.wake());
        CHECK(!queue.wake());
        CHECK(!queue.push(a));
        CHECK(!queue.sleep());
    }
    SECTION("it does not fall asleep on work, and stays asleep when told twice") {
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

TEST_CASE("RemoteQueue: takes in the order of posting, behind what is there", "[post_queue]") {
    RemoteQueue queue;
    IntrusiveList<WorkItem> ready;
    std::vector<std::unique_ptr<WorkItem>> nodes;
    std::vector<WorkItem*> expected;
    for (int i = 0; i < 10; ++i) {
        nodes.push_back(std::make_unique<WorkItem>(nullptr));
        expected.push_back(nodes.back().get());
        queue.push(*nodes.back());
        if (i % 4 == 3) queue.take(ready);
    }
    queue.take(ready);
    CHECK(drain(ready) == expected);
}
