// SPDX-License-Identifier: MIT
// An object that is there or not: what std::optional is, for objects that stay where they are.
// Without copies, moves and comparisons it compiles in a fraction of the time.
#pragma once

#include <cassert>
#include <utility>

#include <asyncverbs/verbs/detail/memory.hpp>

namespace asyncverbs::detail {

template <class T>
class Maybe {
public:
    Maybe() noexcept {}
    Maybe(const Maybe&) = delete;
    Maybe& operator=(const Maybe&) = delete;
    ~Maybe() { reset(); }

    explicit operator bool() const noexcept { return there_; }
    T& operator*() noexcept { return object_; }
    const T& operator*() const noexcept { return object_; }
    T* operator->() noexcept { return std::addressof(object_); }
    const T* operator->() const noexcept { return std::addressof(object_); }

    /// Where there is none. (Destroying one first would be for nobody, and GCC 14 takes what is not
    /// there for used.)
    template <class... Arguments>
    T& emplace(Arguments&&... arguments) {
        assert(!there_);
        std::construct_at(std::addressof(object_), std::forward<Arguments>(arguments)...);
        there_ = true;
        return object_;
    }

    void reset() noexcept {
        if (!there_) return;
        there_ = false;
        std::destroy_at(std::addressof(object_));
    }

private:
    union {
        T object_;
    };
    bool there_ = false;
};

} // namespace asyncverbs::detail
