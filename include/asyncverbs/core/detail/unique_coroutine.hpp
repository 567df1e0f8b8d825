// SPDX-License-Identifier: MIT
// Owns a coroutine frame that is suspended whenever its owner may be destroyed.
// The one place where the library destroys frames.
#pragma once

#include <coroutine>
#include <utility>

namespace asyncverbs::detail {

template <class Promise>
class UniqueCoroutine {
public:
    UniqueCoroutine() noexcept = default;
    explicit UniqueCoroutine(Promise& promise) noexcept
        : handle_(std::coroutine_handle<Promise>::from_promise(promise)) {}
    UniqueCoroutine(UniqueCoroutine&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
    UniqueCoroutine& operator=(UniqueCoroutine&& other) noexcept {
        // Through a temporary: the frame that is destroyed may own this object.
        UniqueCoroutine(std::move(other)).swap(*this);
        return *this;
    }
    ~UniqueCoroutine() {
        if (handle_) handle_.destroy();
    }

    void swap(UniqueCoroutine& other) noexcept { std::swap(handle_, other.handle_); }

    explicit operator bool() const noexcept { return static_cast<bool>(handle_); }
    std::coroutine_handle<Promise> handle() const noexcept { return handle_; }
    Promise& promise() const { return handle_.promise(); }

private:
    std::coroutine_handle<Promise> handle_;
};

} // namespace asyncverbs::detail
