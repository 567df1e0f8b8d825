// SPDX-License-Identifier: MIT
// Native objects of libibverbs: the shared pointer to one that every owner holds, and calls of
// verbs whose results are checked.
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// --- ownership ---

// Its deleter destroys the object and then releases the parents, so that owners may be destroyed
// in any order. close() destroys the object earlier, and reports.
template <class Native>
using Handle = std::shared_ptr<Native>;

// The deleter of all native objects with at most two parents. One type for all of them, because
// each type of deleter makes shared_ptr slower to compile.
class ReleaseNative {
public:
    ReleaseNative(int (*destroy)(void* native), Handle<void> parent,
                  Handle<void> other_parent) noexcept
        : destroy_(destroy), parent_(std::move(parent)), other_parent_(std::move(other_parent)) {}

    // Releases the parents right after the child: a weak_ptr may keep the deleter itself alive.
    void operator()(void* native) noexcept {
        static_cast<void>(try_destroy(native)); // no caller is left to handle an error
        parent_.reset();
        other_parent_.reset();
    }

    // Destroys the object, unless that succeeded before. Returns the result of the verb.
    int try_destroy(void* native) noexcept {
        const int result = destroy_ != nullptr ? destroy_(native) : 0;
        if (result == 0) destroy_ = nullptr;
        return result;
    }

private:
    int (*destroy_)(void*);
    Handle<void> parent_;
    Handle<void> other_parent_;
};

// Takes ownership of `native`, and destroys it if this function throws. `destroy` must not throw;
// it returns as a verb. `parent` is released first.
template <auto destroy, class Native>
[[nodiscard]] Handle<Native> own(Native* native, Handle<void> parent = nullptr,
                                 Handle<void> other_parent = nullptr) {
    const auto release = [](void* object) { return destroy(static_cast<Native*>(object)); };
    Handle<void> owner(static_cast<void*>(native),
                       ReleaseNative(release, std::move(parent), std::move(other_parent)));
    return Handle<Native>(std::move(owner), native);
}

// Destroys the object of `handle`, if it has one, and resets it. Changes nothing, and returns the
// error, if the verb fails, or if there are other handles. `Deleter` is that of the object; one of
// other code only releases it.
template <class Deleter = ReleaseNative, class Native>
[[nodiscard]] std::error_code close(Handle<Native>& handle) noexcept {
    if (handle.use_count() > 1) return std::make_error_code(std::errc::device_or_resource_busy);
    if (auto* const deleter = std::get_deleter<Deleter>(handle)) {
        errno = 0;
        if (const int result = deleter->try_destroy(handle.get())) {
            return {verb_errno(result), std::system_category()};
        }
    }
    handle.reset();
    return {};
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

// Returns the handle from which an owner is made. Throws invalid_argument if it is null.
template <class Native>
[[nodiscard]] const std::shared_ptr<Native>& adopted(const std::shared_ptr<Native>& handle,
                                                     const char* type) {
    if (!handle) {
        throw_error(std::errc::invalid_argument,
                    std::string("cannot make an owner of a null ") + type);
    }
    return handle; // NOLINT(bugprone-return-const-ref-from-parameter): the caller's
}

// --- calls; all of them set errno to 0 first, see verb_errno() ---

// Returns the object that `function` creates. If it is null, throws std::system_error naming
// `verb`, followed by what `hint` says of the errno value.
template <class Function, class Hint>
[[nodiscard]] auto create(const char* verb, Function function, Hint hint) {
    errno = 0;
    auto* native = function();
    if (native == nullptr) {
        const int error = verb_errno();
        throw_verb_error((std::string(verb) + hint(error)).c_str(), error);
    }
    return native;
}
template <class Function>
[[nodiscard]] auto create(const char* verb, Function function) {
    return create(verb, function, [](int /*error*/) { return ""; });
}

// Throws std::system_error naming `verb` unless `function` returns 0.
template <class Function>
void call(const char* verb, Function function) {
    errno = 0;
    if (const int result = function()) {
        throw_verb_error(verb, verb_errno(result));
    }
}

[[nodiscard]] inline bool is_iwarp(const ibv_context& context) noexcept {
    return context.device->transport_type == IBV_TRANSPORT_IWARP;
}

// What the error of a failed ibv_post_send names: the verb and, if the device lacks what `request`
// asks for, the reason. `request` may be null.
[[nodiscard]] inline const char* failed_post(const char* verb, const ibv_qp* qp,
                                             const ibv_send_wr* request) noexcept {
    if (request == nullptr || !is_iwarp(*qp->context)) return verb;
    switch (request->opcode) {
    case IBV_WR_SEND_WITH_IMM:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return "ibv_post_send (iWARP has no immediate data: send a message instead)";
    case IBV_WR_ATOMIC_CMP_AND_SWP:
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return "ibv_post_send (iWARP has no atomics: let the peer's program change the memory)";
    default:
        return verb;
    }
}
[[nodiscard]] inline const char* failed_post(const char* verb, const void* /*queue*/,
                                             const ibv_recv_wr* /*request*/) noexcept {
    return verb;
}

template <class Queue, class Request>
using PostVerb = int (*)(Queue*, Request*, Request**);

// Posts a chain of work requests. Throws std::system_error naming `name`.
template <class Queue, class Request>
void post(PostVerb<Queue, Request> verb, const char* name, Queue* queue, Request& requests) {
    Request* bad = nullptr;
    errno = 0;
    if (const int result = verb(queue, &requests, &bad)) {
        throw_verb_error(failed_post(name, queue, bad), verb_errno(result));
    }
}

// The form that does not throw: returns the first request that was not posted, nullptr on success.
// `queue` may be null: EINVAL.
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

// Sets O_NONBLOCK, so that reading an event that is not there does not block the event loop. Throws
// std::system_error naming fcntl.
inline void set_non_blocking(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw_verb_error("fcntl", errno);
}

} // namespace asyncverbs::detail
