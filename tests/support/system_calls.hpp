// SPDX-License-Identifier: MIT
// Counts all system calls of a piece of code, including those of libibverbs and the C library: a
// child process runs the code, its parent traces it with ptrace(2).
#pragma once

#include <functional>
#include <map>

namespace asyncverbs::support {

/// System calls by number (SYS_read, …).
using SystemCalls = std::map<long, int>;

/// Runs `code` in a child process and returns its system calls between begin_counting() and
/// end_counting(). Throws std::runtime_error if the child fails; its exception is on standard
/// error. Only for code that is safe after fork(): open devices inside `code`.
SystemCalls count_system_calls(const std::function<void()>& code);

void begin_counting() noexcept;
void end_counting() noexcept;

} // namespace asyncverbs::support
