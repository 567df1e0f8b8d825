// SPDX-License-Identifier: MIT
// What the owners have in common: a shared pointer to the native object, whose deleter destroys the
// object and only then lets go of the parents.
// So no order in which owners are destroyed can be wrong, and none has to be remembered.
#pragma once

#include <string>
#include <utility>

#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// What an owner holds; compiled on use alone.
template <class Native, class Use>
using Handle = Used<std::shared_ptr<Native>, Use>;

// The deleter of all native objects that have no more than two parents. One type for all of them:
// what a shared_ptr makes of each other type takes long to compile.
template <class Use>
class ReleaseNative {
public:
    ReleaseNative(void (*destroy)(void* native), Handle<void, Use> parent,
                  Handle<void, Use> other_parent) noexcept
        : destroy_(destroy), parent_(std::move(parent)), other_parent_(std::move(other_parent)) {}

    // The parents are let go right after the child, not when the deleter itself is destroyed: a
    // weak_ptr may delay that for ever.
    void operator()(void* native) noexcept {
        destroy_(native);
        parent_.reset();
        other_parent_.reset();
    }

private:
    void (*destroy_)(void*);
    Handle<void, Use> parent_;
    Handle<void, Use> other_parent_;
};

// Takes over `native`, which is also destroyed when this function throws. `destroy` must not throw;
// its result is dropped, since nobody is left who could act on it. `parent` goes first.
template <auto destroy, class Use = OnUse, class Native>
[[nodiscard]] Handle<Native, Use> own(Native* native, Handle<void, Use> parent = nullptr,
                                      Handle<void, Use> other_parent = nullptr) {
    const auto release = [](void* object) { destroy(static_cast<Native*>(object)); };
    Handle<void, Use> owner(
        static_cast<void*>(native),
        ReleaseNative<Use>(release, std::move(parent), std::move(other_parent)));
    return Handle<Native, Use>(std::move(owner), native);
}

// The handle of an owner that is about to be used. Fails cleanly where the owner was moved from,
// which would otherwise be a null pointer in libibverbs.
template <class Native>
[[nodiscard]] const std::shared_ptr<Native>& alive(const std::shared_ptr<Native>& handle,
                                                   const char* owner) {
    if (!handle) {
        throw_error(std::errc::invalid_argument,
                    std::string("this ") + owner + " was moved from and owns nothing");
    }
    return handle; // NOLINT(bugprone-return-const-ref-from-parameter): a member of an owner
}

} // namespace asyncverbs::detail
