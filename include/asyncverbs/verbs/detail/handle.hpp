// SPDX-License-Identifier: MIT
// The shared pointer to a native object that every owner holds. Its deleter destroys the object and
// then releases the parents, so that owners may be destroyed in any order.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

template <class Native>
using Handle = std::shared_ptr<Native>;

// The deleter of all native objects with at most two parents. One type for all of them, because
// each type of deleter makes shared_ptr slower to compile.
class ReleaseNative {
public:
    ReleaseNative(void (*destroy)(void* native), Handle<void> parent,
                  Handle<void> other_parent) noexcept
        : destroy_(destroy), parent_(std::move(parent)), other_parent_(std::move(other_parent)) {}

    // Releases the parents right after the child: a weak_ptr may keep the deleter itself alive.
    void operator()(void* native) noexcept {
        destroy_(native);
        parent_.reset();
        other_parent_.reset();
    }

private:
    void (*destroy_)(void*);
    Handle<void> parent_;
    Handle<void> other_parent_;
};

// Takes ownership of `native`, and destroys it if this function throws. `destroy` must not throw;
// its result is ignored, because no caller is left to handle it. `parent` is released first.
template <auto destroy, class Native>
[[nodiscard]] Handle<Native> own(Native* native, Handle<void> parent = nullptr,
                                 Handle<void> other_parent = nullptr) {
    const auto release = [](void* object) { destroy(static_cast<Native*>(object)); };
    Handle<void> owner(static_cast<void*>(native),
                       ReleaseNative(release, std::move(parent), std::move(other_parent)));
    return Handle<Native>(std::move(owner), native);
}

// Returns the handle of an owner. Throws invalid_argument if the owner was moved from, which would
// be a null pointer in libibverbs otherwise.
template <class Native>
[[nodiscard]] const std::shared_ptr<Native>& checked(const std::shared_ptr<Native>& handle,
                                                     const char* owner) {
    if (!handle) {
        throw_error(std::errc::invalid_argument,
                    std::string("this ") + owner + " was moved from and owns nothing");
    }
    return handle; // NOLINT(bugprone-return-const-ref-from-parameter): a member of an owner
}

} // namespace asyncverbs::detail
