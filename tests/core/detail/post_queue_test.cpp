// SPDX-License-Identifier: MIT
// PostQueue: order, and who has to wake the loop.
#include <asyncverbs/core/detail/post_queue.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>

#include <memory>
#include <vector>

#include "support/catch.hpp"

using asyncverbs::detail::IntrusiveList;
using PostQueue = asyncverbs::detail::PostQueue<asyncverbs::OnUse>;
using ReadyNode = asyncverbs::detail::ReadyNode<asyncverbs::OnUse>;

namespace {

std::vector<ReadyNode*> drain(IntrusiveList<ReadyNode>& list) {
    std::vector<ReadyNode*> nodes;
    while (!list.empty()) {
        nodes.push_back(&list.front());
        list.front().unlink();
    }
    return nodes;
}

} // namespace

TEST_CASE("PostQueue: the first to find the loop asleep wakes it", "[post_queue]") {
    PostQueue queue;
    IntrusiveList<ReadyNode> ready;
    ReadyNode a{nullptr};
    ReadyNode b{nullptr};

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

TEST_CASE("PostQueue: takes in the order of posting, behind what is there", "[post_queue]") {
    PostQueue queue;
    IntrusiveList<ReadyNode> ready;
    std::vector<std::unique_ptr<ReadyNode>> nodes;
    std::vector<ReadyNode*> expected;
    for (int i = 0; i < 10; ++i) {
        nodes.push_back(std::make_unique<ReadyNode>(nullptr));
        expected.push_back(nodes.back().get());
        queue.push(*nodes.back());
        if (i % 4 == 3) queue.take(ready);
    }
    queue.take(ready);
    CHECK(drain(ready) == expected);
}
