// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/detail/native.hpp>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using support::contains;
using support::failure_text;

namespace {

// A native object that logs its destruction.
struct Logged {
    std::string name;
    std::vector<std::string>* log;
};

int destroy(Logged* object) {
    object->log->push_back(object->name);
    return 0;
}

} // namespace

TEST_CASE("a child is destroyed before its parents, in any order of release",
          "[verbs][handle][I12]") {
    std::vector<std::string> log;
    Logged parent{"parent", &log};
    Logged child{"child", &log};
    auto parent_handle = detail::own<&destroy>(&parent);
    auto child_handle = detail::own<&destroy>(&child, parent_handle);
    parent_handle.reset();
    CHECK(log.empty());
    child_handle.reset();
    CHECK(log == std::vector<std::string>{"child", "parent"});
}

TEST_CASE("a weak pointer to a child does not keep its parents", "[verbs][handle]") {
    std::vector<std::string> log;
    Logged parent{"parent", &log};
    Logged child{"child", &log};
    auto child_handle = detail::own<&destroy>(&child, detail::own<&destroy>(&parent));
    const std::weak_ptr<Logged> watcher = child_handle;
    child_handle.reset();
    CHECK(log == std::vector<std::string>{"child", "parent"});
}

TEST_CASE("an owner that was moved from is reported by name", "[verbs][handle]") {
    const auto handle = std::make_shared<int>(1);
    CHECK(detail::checked(handle, "Context") == handle);
    CHECK_THAT(failure_text(std::errc::invalid_argument,
                            [] { (void)detail::checked(std::shared_ptr<int>(), "Context"); }),
               contains("this Context was moved from"));
}
