// SPDX-License-Identifier: MIT
#include <asyncverbs/coro/detail/intrusive_list.hpp>

#include <array>
#include <vector>

#include "support/catch.hpp"

using asyncverbs::detail::IntrusiveList;
using asyncverbs::detail::ListNode;

namespace {

struct Item : ListNode {
    int value = 0;
};

// With the values 0 to 3.
struct Items : std::array<Item, 4> {
    Items() {
        for (int i = 0; i < 4; ++i) (*this)[static_cast<std::size_t>(i)].value = i;
    }
};

std::vector<int> drain(IntrusiveList<Item>& list) {
    std::vector<int> values;
    while (!list.empty()) {
        values.push_back(list.front().value);
        list.front().unlink();
    }
    return values;
}

} // namespace

TEST_CASE("IntrusiveList: keeps the order; items can leave from anywhere", "[intrusive_list]") {
    Items items;
    IntrusiveList<Item> list;
    CHECK(list.empty());
    for (Item& item : items) {
        CHECK(!item.linked());
        list.push_back(item);
        CHECK(item.linked());
    }
    items[2].unlink();
    CHECK(!items[2].linked());
    items[2].unlink();
    {
        Item destroyed;
        list.push_back(destroyed);
    }
    CHECK(drain(list) == std::vector{0, 1, 3});
}

TEST_CASE("IntrusiveList: items of another list are added at either end", "[intrusive_list]") {
    Items items;
    IntrusiveList<Item> a, b, nothing;
    a.push_back(items[0]);
    a.push_back(items[1]);
    b.push_back(items[2]);
    b.push_back(items[3]);

    SECTION("at the end") {
        a.append(b);
        CHECK(drain(a) == std::vector{0, 1, 2, 3});
        CHECK(b.empty());
    }
    SECTION("at the front") {
        a.prepend(b);
        CHECK(drain(a) == std::vector{2, 3, 0, 1});
        CHECK(b.empty());
    }
    SECTION("from an empty list") {
        a.append(nothing);
        a.prepend(nothing);
        CHECK(drain(a) == std::vector{0, 1});
    }
    SECTION("to an empty list") {
        nothing.prepend(a);
        nothing.append(b);
        CHECK(drain(nothing) == std::vector{0, 1, 2, 3});
        CHECK(a.empty());
    }
}

TEST_CASE("IntrusiveList: its destructor unlinks the items", "[intrusive_list]") {
    Item item;
    {
        IntrusiveList<Item> list;
        list.push_back(item);
    }
    CHECK(!item.linked());
}
