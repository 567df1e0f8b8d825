// SPDX-License-Identifier: MIT
// Posting a chain of work requests, in the two forms that every owner of a work queue offers.
#pragma once

#include <cerrno>
#include <system_error>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

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
