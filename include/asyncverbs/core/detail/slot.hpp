// SPDX-License-Identifier: MIT
// Room for the result of a co_await, of whatever type: a value, a reference or nothing.
// Tasks and combinators keep results in it until somebody takes them.
#pragma once

#include <type_traits>
#include <utility>
#include <variant>

#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class T>
class Slot {
public:
    using Result = T;  // of a function that returns the result
    using Element = T; // of a tuple or a vector of results

    template <class U>
    void put(U&& value) {
        value_.emplace(std::forward<U>(value));
    }
    T take() { return std::move(*value_); }

private:
    Maybe<T> value_;
};

template <class T>
class Slot<T&> {
public:
    using Result = T&;
    using Element = T&;

    void put(T& value) noexcept { value_ = std::addressof(value); }
    T& take() const noexcept { return *value_; }

private:
    T* value_ = nullptr;
};

template <>
class Slot<void> {
public:
    using Result = void;
    using Element = std::monostate;

    std::monostate take() const noexcept { return {}; }
};

// An awaitable may give an rvalue reference; it is kept by value.
template <class T>
using SlotFor = Slot<std::conditional_t<std::is_rvalue_reference_v<T>, std::remove_cvref_t<T>, T>>;

} // namespace asyncverbs::detail
