// SPDX-License-Identifier: MIT
// Operations of this library are senders by being awaitable. This file has the requirements of
// std::execution on such senders, and a small connect() that follows the standard's.
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <array>
#include <concepts>
#include <coroutine>
#include <exception>
#include <functional>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "cq/fixture.hpp"
#include "rdma/fixture.hpp"
#include "support/catch.hpp"
#include "support/foreign/stdexec.hpp"

using namespace asyncverbs;
using asyncverbs::support::contains;

namespace {

// --- requirements on a sender: [exec.awaitable], [exec.snd.concepts] ---

template <class R>
constexpr bool is_coroutine_handle = false;
template <class Promise>
constexpr bool is_coroutine_handle<std::coroutine_handle<Promise>> = true;

template <class R>
concept suspend_result = std::same_as<R, void> || std::same_as<R, bool> || is_coroutine_handle<R>;

template <class A, class Promise>
concept is_awaiter =
    requires(std::remove_reference_t<A>& awaiter, std::coroutine_handle<Promise> coroutine) {
        awaiter.await_ready() ? 1 : 0;
        { awaiter.await_suspend(coroutine) } -> suspend_result;
        awaiter.await_resume();
    };

// Base of the standard's promise: uses as_awaitable() where there is one.
template <class Derived>
struct WithAwaitTransform {
    template <class T>
    T&& await_transform(T&& value) noexcept {
        return std::forward<T>(value);
    }
    template <class T>
        requires requires(T&& value, Derived& promise) {
            std::forward<T>(value).as_awaitable(promise);
        }
    decltype(auto) await_transform(T&& value) {
        return std::forward<T>(value).as_awaitable(static_cast<Derived&>(*this));
    }
};
struct EnvPromise : WithAwaitTransform<EnvPromise> {};

// GET-AWAITER: what operator co_await returns, or else the awaitable itself.
template <class A>
decltype(auto) get_awaiter(A&& awaitable) {
    if constexpr (requires { std::forward<A>(awaitable).operator co_await(); }) {
        return std::forward<A>(awaitable).operator co_await();
    } else if constexpr (requires { operator co_await(std::forward<A>(awaitable)); }) {
        return operator co_await(std::forward<A>(awaitable));
    } else {
        return std::forward<A>(awaitable);
    }
}

template <class A, class Promise>
using awaiter_of =
    decltype(get_awaiter(std::declval<Promise&>().await_transform(std::declval<A>())));

template <class A, class Promise>
concept is_awaitable =
    requires { typename awaiter_of<A, Promise>; } && is_awaiter<awaiter_of<A, Promise>, Promise>;

template <class S>
concept is_sender = is_awaitable<S, EnvPromise> && std::destructible<std::remove_cvref_t<S>> &&
                    std::move_constructible<std::remove_cvref_t<S>> &&
                    std::constructible_from<std::remove_cvref_t<S>, S>;

// set_value_t(V), beside set_error_t(exception_ptr) and set_stopped_t().
template <class S>
using value_of = decltype(std::declval<awaiter_of<S, EnvPromise>&>().await_resume());

static_assert(is_sender<PollOperation> && std::same_as<value_of<PollOperation>, std::span<ibv_wc>>);
static_assert(is_sender<PollWrIdOperation> && std::same_as<value_of<PollWrIdOperation>, ibv_wc>);
static_assert(is_sender<Operation> && std::same_as<value_of<Operation>, Completion>);
using OperationWait = decltype(std::declval<Operation&>().wait(std::stop_token()));
static_assert(is_sender<OperationWait> && std::same_as<value_of<OperationWait>, Completion>);

static_assert(!is_awaitable<const PollOperation, EnvPromise>);

template <class S>
constexpr bool is_nothrow_sender =
    std::is_nothrow_move_constructible_v<S> && std::is_nothrow_destructible_v<S>;
static_assert(is_nothrow_sender<PollOperation> && is_nothrow_sender<PollWrIdOperation>);
static_assert(is_nothrow_sender<Operation> && is_nothrow_sender<OperationWait>);
static_assert(noexcept(std::declval<Operation>().operator co_await()));
static_assert(noexcept(std::declval<Operation&>().wait(std::stop_token())));
static_assert(!std::copy_constructible<PollOperation>);

// --- connect and start: [exec.connect], connect-awaitable ---

class OperationState {
public:
    struct promise_base {
        std::suspend_always initial_suspend() const noexcept { return {}; }
        [[noreturn]] std::suspend_always final_suspend() const noexcept { std::terminate(); }
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
        [[noreturn]] void return_void() const noexcept { std::terminate(); }
    };
    template <class Receiver>
    struct Promise : promise_base, WithAwaitTransform<Promise<Receiver>> {
        Promise(auto&, Receiver& r) noexcept : receiver(r) {}
        OperationState get_return_object() noexcept {
            return OperationState(std::coroutine_handle<Promise>::from_promise(*this));
        }
        // An awaitable may call it instead of resuming; none of this library does.
        std::coroutine_handle<> unhandled_stopped() noexcept {
            std::move(receiver).set_stopped();
            return std::noop_coroutine();
        }
        Receiver& receiver;
    };

    OperationState(const OperationState&) = delete;
    OperationState& operator=(const OperationState&) = delete;
    ~OperationState() { coroutine_.destroy(); }

    void start() & noexcept { coroutine_.resume(); }

private:
    explicit OperationState(std::coroutine_handle<> coroutine) noexcept : coroutine_(coroutine) {}
    std::coroutine_handle<> coroutine_;
};

// Completes while the coroutine is suspended, so that the receiver may destroy it.
template <class Function>
struct SuspendComplete {
    explicit SuspendComplete(Function f) noexcept : function(std::move(f)) {}
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<>) noexcept { function(); }
    [[noreturn]] void await_resume() const noexcept { std::terminate(); }
    Function function;
};

template <class Sender, class Receiver>
OperationState connect_awaitable(Sender sender, Receiver receiver);

} // namespace

template <class Sender, class Receiver>
struct std::coroutine_traits<OperationState, Sender, Receiver> {
    using promise_type = OperationState::Promise<Receiver>;
};

namespace {

template <class Sender, class Receiver>
OperationState connect_awaitable(Sender sender, Receiver receiver) {
    std::exception_ptr error;
    try {
        auto value = co_await std::move(sender);
        auto complete = [&] { std::move(receiver).set_value(std::move(value)); };
        SuspendComplete<decltype(complete)> completion(complete);
        co_await std::move(completion);
    } catch (...) {
        error = std::current_exception();
    }
    auto complete = [&] { std::move(receiver).set_error(std::move(error)); };
    SuspendComplete<decltype(complete)> completion(complete);
    co_await std::move(completion);
}

template <class Sender, class Receiver>
OperationState connect(Sender&& sender, Receiver receiver) {
    return connect_awaitable<std::remove_cvref_t<Sender>, Receiver>(std::forward<Sender>(sender),
                                                                    std::move(receiver));
}

// Stores the completion, and calls `then`.
template <class T>
struct Outcome {
    bool done() const noexcept { return value || error || stopped; }
    std::error_code code() const {
        try {
            if (error) std::rethrow_exception(error);
        } catch (const std::system_error& e) {
            return e.code();
        }
        return {};
    }

    std::optional<T> value;
    std::exception_ptr error;
    bool stopped = false;
    std::function<void()> then;
};

template <class T>
struct Receiver {
    explicit Receiver(Outcome<T>& o) noexcept : outcome(&o) {}
    void set_value(T value) && noexcept {
        outcome->value.emplace(std::move(value));
        if (outcome->then) outcome->then();
    }
    void set_error(std::exception_ptr error) && noexcept { outcome->error = std::move(error); }
    void set_stopped() && noexcept { outcome->stopped = true; }
    Outcome<T>* outcome;
};

using Polled = std::span<ibv_wc>;

struct SenderFixture : support::CqFixture<> {
    std::array<ibv_wc, 4> wcs{};
    Outcome<Polled> outcome;
};

} // namespace

TEST_CASE("Senders: poll() completes with a value", "[senders]") {
    SenderFixture f;
    OperationState operation = connect(f.cq->poll(f.wcs), Receiver<Polled>(f.outcome));
    SECTION("when it is started") {
        f.complete({1});
        CHECK(!f.outcome.done());
        operation.start();
    }
    SECTION("later, by the loop") {
        operation.start();
        CHECK(!f.outcome.done());
        f.complete({1});
        CHECK(!f.outcome.done());
        f.wake();
    }
    REQUIRE(f.outcome.value);
    REQUIRE(f.outcome.value->size() == 1);
    CHECK(f.outcome.value->front().wr_id == 1);
    CHECK(!f.outcome.error);
}

TEST_CASE("Senders: poll() completes with an error, also for a stop", "[senders]") {
    SenderFixture f;
    std::stop_source stop;
    OperationState operation =
        connect(f.cq->poll(f.wcs, stop.get_token()), Receiver<Polled>(f.outcome));
    SECTION("of a verb") {
        f.sim.fail("ibv_poll_cq", {.error = EIO});
        operation.start();
        REQUIRE(f.outcome.error);
        CHECK_THROWS_WITH(std::rethrow_exception(f.outcome.error), contains("ibv_poll_cq"));
    }
    SECTION("stopped before it is started") {
        stop.request_stop();
        operation.start();
        CHECK(f.outcome.code() == std::errc::operation_canceled);
    }
    SECTION("stopped while it runs") {
        operation.start();
        stop.request_stop();
        CHECK(!f.outcome.done());
        f.wake();
        CHECK(f.outcome.code() == std::errc::operation_canceled);
    }
    CHECK(!f.outcome.value);
    CHECK(!f.outcome.stopped);
}

namespace {

// As in the documentation of PollOperation.
exec::task<std::span<ibv_wc>> poll_with_env(AsyncCq& cq, std::span<ibv_wc> wcs) {
    auto token = co_await stdexec::read_env(stdexec::get_stop_token);
    std::stop_source source;
    auto stop = [&source] { source.request_stop(); };
    stdexec::stop_callback_for_t<decltype(token), decltype(stop)> bridge(token, stop);
    co_return co_await cq.poll(wcs, source.get_token());
}

} // namespace

TEST_CASE("Senders: a stop of the receiver's environment, through a bridge", "[senders]") {
    SenderFixture f;
    std::stop_source stop;
    const stdexec::env env{{stop.get_token()}};
    auto task = poll_with_env(*f.cq, f.wcs);
    const auto code = [&] {
        try {
            task.get();
        } catch (const std::system_error& error) {
            return error.code();
        }
        return std::error_code();
    };
    SECTION("before it is started") {
        stop.request_stop();
        task.start(env);
        REQUIRE(task.done());
        CHECK(code() == std::errc::operation_canceled);
    }
    SECTION("while it waits, from another thread") {
        task.start(env);
        std::thread([&] { stop.request_stop(); }).join();
        CHECK(!task.done());
        f.wake();
        REQUIRE(task.done());
        CHECK(code() == std::errc::operation_canceled);
    }
    SECTION("none") {
        task.start(env);
        f.complete_and_wake({3});
        REQUIRE(task.done());
        CHECK(task.get().front().wr_id == 3);
    }
}

TEST_CASE("Senders: a sender that is not started has no effect", "[senders]") {
    SenderFixture f;
    Outcome<Polled> never;
    {
        const PollOperation dropped = f.cq->poll(f.wcs);
    }
    {
        const OperationState dropped = connect(f.cq->poll(f.wcs), Receiver<Polled>(never));
    }
    const OperationState waits = connect(f.cq->poll(f.wcs), Receiver<Polled>(never));
    CHECK(f.sim.calls("ibv_poll_cq") == 0);
    CHECK(!f.notifier.waiting());

    OperationState operation = connect(f.cq->poll(f.wcs), Receiver<Polled>(f.outcome));
    operation.start();
    f.complete_and_wake({4});
    REQUIRE(f.outcome.value);
    CHECK(!never.done());
}

TEST_CASE("Senders: a receiver starts the next operation, 10,000 times", "[senders]") {
    SenderFixture f;
    int rounds = 0;
    std::optional<OperationState> operations[2];
    const auto start = [&] {
        std::optional<OperationState>& next = operations[rounds % 2];
        next.reset(); // completed in the round before the last
        struct Connect {
            SenderFixture& f;
            operator OperationState() const {
                return connect(f.cq->poll(f.wcs), Receiver<Polled>(f.outcome));
            }
        };
        next.emplace(Connect{f});
        next->start();
    };
    f.outcome.then = [&] {
        if (++rounds < 10'000) start();
    };
    start();
    for (std::uint64_t id = 0; rounds < 10'000 && id < 10'000; ++id) {
        f.complete_and_wake({id});
        REQUIRE(f.outcome.value->front().wr_id == id);
    }
    CHECK(rounds == 10'000);
}

TEST_CASE("Senders: operations of a queue pair", "[senders]") {
    support::RouterFixture f;
    Outcome<Completion> received;
    Outcome<Completion> sent;
    SECTION("values") {
        Operation post = f.b->post_recv(f.slice(100, 64));
        Operation moved = std::move(post);
        OperationState receive = connect(std::move(moved), Receiver<Completion>(received));
        OperationState send = connect(f.a->send(f.slice(0, 5)), Receiver<Completion>(sent));
        receive.start();
        send.start();
        f.run();
        REQUIRE(received.value);
        REQUIRE(sent.value);
        CHECK(received.value->bytes() == 5);
    }
    SECTION("an error") {
        f.sim.fail("ibv_post_send");
        OperationState send = connect(f.a->send(f.slice(0, 5)), Receiver<Completion>(sent));
        send.start();
        REQUIRE(sent.error);
        CHECK_THROWS_WITH(std::rethrow_exception(sent.error), contains("ibv_post_send"));
    }
    SECTION("a stop") {
        std::stop_source stop;
        Operation post = f.b->post_recv(f.slice(100, 64));
        OperationState receive =
            connect(post.wait(stop.get_token()), Receiver<Completion>(received));
        receive.start();
        stop.request_stop();
        f.run();
        CHECK(received.code() == std::errc::operation_canceled);
    }
}
