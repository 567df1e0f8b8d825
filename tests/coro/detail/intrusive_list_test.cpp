// SPDX-License-Identifier: MIT
// IntrusiveList: order, unlinking, moving between lists.
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

std::vector<int> drain(IntrusiveList<Item>& list) {
    std::vector<int> values;
    while (!list.empty()) {
        values.push_back(list.front().value);
        list.front().unlink();
    }
    return values;
}

} // namespace

TEST_CASE("IntrusiveList: items leave in order, from anywhere", "[intrusive_list]") {
    std::array<Item, 4> items;
    IntrusiveList<Item> list;
    CHECK(list.empty());
    for (int i = 0; i < 4; ++i) {
        items[static_cast<std::size_t>(i)].value = i;
        CHECK(!items[static_cast<std::size_t>(i)].linked());
        list.push_back(items[static_cast<std::size_t>(i)]);
        CHECK(items[static_cast<std::size_t>(i)].linked());
    }
    items[2].unlink();
    CHECK(!items[2].linked());
    items[2].unlink();
    {
        Item gone;
        list.push_back(gone);
    }
    CHECK(drain(list) == std::vector{0, 1, 3});
}

TEST_CASE("IntrusiveList: lists join at either end", "[intrusive_list]") {
    std::array<Item, 4> items;
    IntrusiveList<Item> a;
    IntrusiveList<Item> b;
    IntrusiveList<Item> nothing;
    for (int i = 0; i < 4; ++i) items[static_cast<std::size_t>(i)].value = i;
    a.push_back(items[0]);
    a.push_back(items[1]);
    b.push_back(items[2]);
    b.push_back(items[3]);

    SECTION("behind") {
        a.append(b);
        CHECK(drain(a) == std::vector{0, 1, 2, 3});
        CHECK(b.empty());
    }
    SECTION("before") {
        a.prepend(b);
        CHECK(drain(a) == std::vector{2, 3, 0, 1});
        CHECK(b.empty());
    }
    SECTION("an empty one changes nothing") {
        a.append(nothing);
        a.prepend(nothing);
        CHECK(drain(a) == std::vector{0, 1});
    }
    SECTION("to an empty one") {
        nothing.prepend(a);
        nothing.append(b);
        CHECK(drain(nothing) == std::vector{0, 1, 2, 3});
        CHECK(a.empty());
    }
}

TEST_CASE("IntrusiveList: a list that ends lets its items go", "[intrusive_list]") {
    Item item;
    {
        IntrusiveList<Item> list;
        list.push_back(item);
    }
    CHECK(!item.linked());
}
