// SPDX-License-Identifier: MIT
// Counts the system calls that a piece of code makes, whoever makes them: the library, libibverbs
// or the C library. A child process runs the code, its parent traces it with ptrace(2).
#pragma once

#include <functional>
#include <map>

namespace asyncverbs::support {

/// System calls by number (SYS_read, …).
using SystemCalls = std::map<long, int>;

/// Runs `code` in a child process and returns the system calls that it made between
/// begin_counting() and end_counting(). Throws std::runtime_error if the child fails, with what it
/// threw on standard error. Fork-safe code only: open devices inside `code`.
SystemCalls count_system_calls(const std::function<void()>& code);

void begin_counting() noexcept;
void end_counting() noexcept;

} // namespace asyncverbs::support
