// SPDX-License-Identifier: MIT
#include "support/system_calls.hpp"

#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <system_error>

namespace asyncverbs::support {
namespace {

// System calls that do not exist: their only effect is to appear in the trace.
constexpr long begin_marker = 10001;
constexpr long end_marker = 10002;

[[noreturn]] void run_traced(const std::function<void()>& code) {
    ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
    ::raise(SIGSTOP);
    try {
        code();
        ::_exit(0);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "traced code: %s\n", error.what());
        ::_exit(1);
    }
}

int wait_for(pid_t child) {
    int status = 0;
    while (::waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) throw std::system_error(errno, std::system_category(), "waitpid");
    }
    return status;
}

} // namespace

void begin_counting() noexcept { ::syscall(begin_marker); }
void end_counting() noexcept { ::syscall(end_marker); }

SystemCalls count_system_calls(const std::function<void()>& code) {
    const pid_t child = ::fork();
    if (child < 0) throw std::system_error(errno, std::system_category(), "fork");
    if (child == 0) run_traced(code);

    wait_for(child);
    ::ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    SystemCalls calls;
    bool counting = false;
    bool entering = true;
    long signal = 0;
    for (;;) {
        ::ptrace(PTRACE_SYSCALL, child, nullptr, signal);
        const int status = wait_for(child);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return calls;
        if (WIFEXITED(status) || WIFSIGNALED(status))
            throw std::runtime_error("traced code failed");
        if (WSTOPSIG(status) != (SIGTRAP | 0x80)) {
            signal = WSTOPSIG(status);
            continue;
        }
        signal = 0;
        if (entering) {
            const long number =
                ::ptrace(PTRACE_PEEKUSER, child, offsetof(user_regs_struct, orig_rax), nullptr);
            if (number == end_marker) counting = false;
            if (counting) ++calls[number];
            if (number == begin_marker) counting = true;
        }
        entering = !entering;
    }
}

} // namespace asyncverbs::support
