// SPDX-License-Identifier: MIT
// Calls of verbs whose results are checked. All of them set errno to 0 first; see verb_errno().
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <system_error>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// Returns the object that `function` creates. Throws std::system_error naming `verb` if it is null.
template <class Function>
[[nodiscard]] auto create(const char* verb, Function function) {
    errno = 0;
    auto* native = function();
    if (native == nullptr) {
        throw_verb_error(verb, verb_errno());
    }
    return native;
}

// Throws std::system_error naming `verb` unless `function` returns 0.
template <class Function>
void call(const char* verb, Function function) {
    errno = 0;
    if (const int result = function()) {
        throw_verb_error(verb, verb_errno(result));
    }
}

template <class Queue, class Request>
using PostVerb = int (*)(Queue*, Request*, Request**);

// Posts a chain of work requests. Throws std::system_error naming `name`.
template <class Queue, class Request>
void post(PostVerb<Queue, Request> verb, const char* name, Queue* queue, Request& requests) {
    Request* bad = nullptr;
    call(name, [&] { return verb(queue, &requests, &bad); });
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
