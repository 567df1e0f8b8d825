// SPDX-License-Identifier: MIT
// TimerHeap against a sorted container, with random insertions and removals.
#include <asyncverbs/executor/detail/timers.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "support/catch.hpp"
using asyncverbs::detail::Timer;
using asyncverbs::detail::TimerHeap;
using Time = std::chrono::steady_clock::time_point;

TEST_CASE("TimerHeap: agrees with a sorted set", "[timer_heap]") {
    constexpr std::size_t count = 300;
    std::mt19937 random(GENERATE(1u, 2u, 3u, 4u));
    std::vector<std::unique_ptr<Timer>> nodes;
    for (std::size_t i = 0; i < count; ++i) nodes.push_back(std::make_unique<Timer>());

    TimerHeap heap;
    std::set<std::pair<Time, std::pair<std::size_t, Timer*>>> sorted;
    std::vector<std::size_t> inserted_at(count, 0); // 0: not in the heap
    std::size_t insertions = 0;
    bool agree = true;
    for (int step = 0; step < 20000; ++step) {
        const std::size_t i = random() % count;
        Timer& node = *nodes[i];
        if (inserted_at[i] != 0) {
            sorted.erase({node.deadline, {inserted_at[i], &node}});
            heap.remove(node);
            inserted_at[i] = 0;
        } else {
            node.deadline = Time(std::chrono::nanoseconds(random() % 100));
            inserted_at[i] = ++insertions;
            heap.insert(node);
            sorted.insert({node.deadline, {insertions, &node}});
        }
        // Sometimes remove only the first ones.
        while (step % 1000 > 900 && !sorted.empty() && random() % 4 != 0) {
            Timer* const first = sorted.begin()->second.second;
            agree = agree && heap.first() == first;
            for (std::size_t n = 0; n < count; ++n) {
                if (nodes[n].get() == first) inserted_at[n] = 0;
            }
            sorted.erase(sorted.begin());
            heap.remove(*first);
        }
        agree = agree && heap.first() == (sorted.empty() ? nullptr : sorted.begin()->second.second);
    }
    CHECK(agree);
}

TEST_CASE("TimerHeap: a node that is not in it can be removed", "[timer_heap]") {
    TimerHeap heap;
    Timer a;
    Timer b;
    heap.remove(a);
    heap.insert(a);
    heap.remove(b);
    CHECK(heap.first() == &a);
    heap.remove(a);
    heap.remove(a);
    CHECK(heap.first() == nullptr);
}

TEST_CASE("TimerHeap: a hundred thousand in ascending and descending order", "[timer_heap]") {
    constexpr int count = 100'000;
    const bool ascending = GENERATE(true, false);
    std::vector<Timer> nodes(count);
    TimerHeap heap;
    for (int i = 0; i < count; ++i) {
        Timer& node = nodes[static_cast<std::size_t>(i)];
        node.deadline = Time(std::chrono::nanoseconds(ascending ? i : count - i));
        heap.insert(node);
    }
    Time previous{};
    bool sorted = true;
    for (int i = 0; i < count; ++i) {
        Timer* const first = heap.first();
        sorted = sorted && first->deadline >= previous;
        previous = first->deadline;
        heap.remove(*first);
    }
    CHECK(sorted);
    CHECK(heap.first() == nullptr);
}
