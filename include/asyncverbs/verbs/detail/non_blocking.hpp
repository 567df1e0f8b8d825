// SPDX-License-Identifier: MIT
// Reading an event that may not be there: on a blocking descriptor that would stop the loop.
#pragma once

#include <fcntl.h>

#include <cerrno>

#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// Sets O_NONBLOCK. Throws std::system_error naming fcntl.
inline void set_non_blocking(int fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) throw_verb_error("fcntl", errno);
}

} // namespace asyncverbs::detail
