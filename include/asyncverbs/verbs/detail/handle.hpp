// SPDX-License-Identifier: MIT
// What the owners have in common: a shared pointer to the native object, whose deleter destroys the
// object and only then lets go of the parents.
// So no order in which owners are destroyed can be wrong, and none has to be remembered.
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// What an owner holds; compiled on use alone.
template <class Native>
using Handle = std::shared_ptr<Native>;

// The deleter of all native objects that have no more than two parents. One type for all of them:
// what a shared_ptr makes of each other type takes long to compile.
class ReleaseNative {
public:
    ReleaseNative(void (*destroy)(void* native), Handle<void> parent,
                  Handle<void> other_parent) noexcept
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
    Handle<void> parent_;
    Handle<void> other_parent_;
};

// Takes over `native`, which is also destroyed when this function throws. `destroy` must not throw;
// its result is dropped, since nobody is left who could act on it. `parent` goes first.
template <auto destroy, class Native>
[[nodiscard]] Handle<Native> own(Native* native, Handle<void> parent = nullptr,
                                 Handle<void> other_parent = nullptr) {
    const auto release = [](void* object) { destroy(static_cast<Native*>(object)); };
    Handle<void> owner(static_cast<void*>(native),
                       ReleaseNative(release, std::move(parent), std::move(other_parent)));
    return Handle<Native>(std::move(owner), native);
}

// The handle of an owner that is about to be used. Fails cleanly where the owner was moved from,
// which would otherwise be a null pointer in libibverbs.
template <class Native>
[[nodiscard]] const std::shared_ptr<Native>& checked(const std::shared_ptr<Native>& handle,
                                                     const char* owner) {
    if (!handle) {
        throw_error(std::errc::invalid_argument,
                    std::string("this ") + owner + " was moved from and owns nothing");
    }
    return handle; // NOLINT(bugprone-return-const-ref-from-parameter): a member of an owner
}

// Reading an event that may not be there: on a blocking descriptor that would stop the loop.

// Sets O_NONBLOCK. Throws std::system_error naming fcntl.
inline void set_non_blocking(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw_verb_error("fcntl", errno);
}

// Posting a chain of work requests, in the two forms that every owner of a work queue offers.

template <class Queue, class Request>
using PostVerb = int (*)(Queue*, Request*, Request**);

// Throws std::system_error naming the verb.
template <class Queue, class Request>
void post(PostVerb<Queue, Request> verb, const char* name, Queue* queue, Request& requests) {
    Request* bad = nullptr;
    errno = 0;
    if (const int result = verb(queue, &requests, &bad)) {
        throw_verb_error(name, verb_errno(result));
    }
}

// The first request that was not posted, nullptr on success. `queue` may be null: EINVAL.
template <class Queue, class Request>
Request* post(PostVerb<Queue, Request> verb, Queue* queue, Request& requests,
              std::error_code& error) noexcept {
    error.clear();
    Request* bad = nullptr;
    errno = 0;
    const int result = queue != nullptr ? verb(queue, &requests, &bad) : EINVAL;
    if (result == 0) {
        return nullptr;
    }
    error.assign(verb_errno(result), std::system_category());
    return bad != nullptr ? bad : &requests;
}

} // namespace asyncverbs::detail
