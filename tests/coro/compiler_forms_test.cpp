// SPDX-License-Identifier: MIT
// In which forms of a condition a coroutine may await. GCC 12.2, the compiler of Debian 12,
// miscompiles a coroutine whose body awaits in a condition and has no local variable before it: the
// coroutine is never resumed, or crashes. Every other compiler must get every form right.
#include <asyncverbs/coro/task.hpp>

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <string_view>
#include <system_error>

#include <asyncverbs/executor/epoll_executor.hpp>

#include "support/catch.hpp"
#include "support/coroutine.hpp"

using namespace asyncverbs;
using namespace std::chrono_literals;

namespace {

// Each form is a function, because GCC compiles coroutines that are lambdas correctly.
#define BODY(name, ...)                                                                            \
    Task<> name(EpollExecutor& loop) { __VA_ARGS__ }
#define SLEEP co_await loop.sleep_for(0ms)

Task<bool> yes(EpollExecutor& loop) {
    co_await loop.schedule();
    co_return true;
}

// What the documentation of Task recommends, and others that are safe.
BODY(named_result, const auto error = SLEEP; if (error) co_return;)
BODY(declared_in_if, if (const auto error = SLEEP) co_return;)
BODY(declared_in_while, while (const auto error = SLEEP) co_return;)
BODY(local_before, [[maybe_unused]] int local = 0; if (SLEEP) co_return;)
BODY(
    in_for_with_variable, for (int i = 0; i < 2; ++i) {
        if (SLEEP) co_return;
    })
BODY(returned, co_return static_cast<void>(SLEEP);)
BODY(statement, SLEEP;)
constexpr auto in_lambda = [](EpollExecutor& loop) -> Task<> {
    if (SLEEP) co_return;
};

// What GCC 12.2 miscompiles.
BODY(in_if, if (SLEEP) co_return;)
BODY(in_negated_if, if (!SLEEP) co_return;)
BODY(in_while, while (SLEEP) co_return;)
BODY(compared, if (SLEEP == std::errc::operation_canceled) co_return;)
BODY(both, if (SLEEP && SLEEP) co_return;)
BODY(either, if (SLEEP || SLEEP) co_return;)
BODY(
    in_switch, switch ((SLEEP).value()) {
default:
    co_return;
    })
BODY(task_in_if, if (co_await yes(loop)) co_return;)
BODY(task_in_negated_if, if (!co_await yes(loop)) co_return;)
BODY(after_statement, SLEEP; if (SLEEP) co_return;)
BODY(after_other_condition, if (loop.native_handle() < 0) co_return; if (SLEEP) co_return;)
BODY(
    in_block, if (loop.native_handle() >= 0) {
        if (SLEEP) co_return;
    })

struct Form {
    std::string_view name;
    Task<> (*run)(EpollExecutor& loop);
    bool works_with_gcc_12_2;
};

const auto forms = std::to_array<Form>({
    {"auto error = co_await ...; if (error)", named_result, true},
    {"if (auto error = co_await ...)", declared_in_if, true},
    {"while (auto error = co_await ...)", declared_in_while, true},
    {"a local variable; if (co_await ...)", local_before, true},
    {"for (int i...) if (co_await ...)", in_for_with_variable, true},
    {"co_return co_await", returned, true},
    {"co_await as a statement", statement, true},
    {"if (co_await ...) in a lambda", in_lambda, true},
    {"if (co_await ...)", in_if, false},
    {"if (!co_await ...)", in_negated_if, false},
    {"while (co_await ...)", in_while, false},
    {"if (co_await ... == value)", compared, false},
    {"if (co_await ... && co_await ...)", both, false},
    {"if (co_await ... || co_await ...)", either, false},
    {"switch (co_await ...)", in_switch, false},
    {"if (co_await task)", task_in_if, false},
    {"if (!co_await task)", task_in_negated_if, false},
    {"co_await ...; if (co_await ...)", after_statement, false},
    {"if (...); if (co_await ...)", after_other_condition, false},
    {"if (...) { if (co_await ...) }", in_block, false},
});

support::Coroutine start(Task<> task) { co_await std::move(task); }

// In a child process, as a broken form may crash.
bool ends(const Form& form) {
    const pid_t child = ::fork();
    if (child == 0) {
        const rlimit no_core{};
        ::setrlimit(RLIMIT_CORE, &no_core);
        for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGABRT}) std::signal(signal, SIG_DFL);
        EpollExecutor executor;
        const support::Coroutine coroutine = start(form.run(executor));
        for (int i = 0; i < 100 && !coroutine.done(); ++i) executor.run_once();
        ::_exit(coroutine.done() ? 0 : 1);
    }
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

} // namespace

TEST_CASE("compiler: awaiting in a condition", "[compiler_forms]") {
    for (const Form& form : forms) {
        INFO(form.name);
        const bool works = ends(form);
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ == 12 && __GNUC_MINOR__ <= 2
        CHECK(works == form.works_with_gcc_12_2);
#else
        CHECK(works);
#endif
    }
}
