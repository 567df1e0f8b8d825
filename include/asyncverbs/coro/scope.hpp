// SPDX-License-Identifier: MIT
// The children of a Scope and how they end. A child that has ended does not destroy its own frame,
// on which it still stands, but leaves that to its scope.
#pragma once

#include <concepts>
#include <coroutine>
#include <exception>
#include <stdexcept>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

class ScopeState;
class JoinAwaiter;

struct ScopeChild {
    struct promise_type;

    // A child that spawn() has started and that has not come back yet. It may destroy the scope.
    struct Start {
        promise_type& child;
        Start* outer; // another spawn(), further down the stack
        bool finished = false;
        bool scope_gone = false;
    };

    promise_type& promise;
};

class ScopeState {
public:
    ScopeState() noexcept = default;
    ScopeState(const ScopeState&) = delete;
    ScopeState& operator=(const ScopeState&) = delete;
    ~ScopeState();

    void start(ScopeChild spawned);
    void fail(std::exception_ptr exception) noexcept {
        if (!exception_) exception_ = std::move(exception);
    }
    std::coroutine_handle<> finish(typename ScopeChild::promise_type& child) noexcept;

private:
    friend JoinAwaiter;

    void reap() noexcept;

    IntrusiveList<typename ScopeChild::promise_type> running_;
    IntrusiveList<typename ScopeChild::promise_type> finished_;
    typename ScopeChild::Start* starting_ = nullptr;
    JoinAwaiter* joiner_ = nullptr;
    std::exception_ptr exception_;
};

struct ScopeChild::promise_type : ListNode {
    struct FinalAwaiter {
        bool await_ready() const noexcept { return false; }
        std::coroutine_handle<>
        await_suspend(std::coroutine_handle<promise_type> child) const noexcept {
            promise_type& self = child.promise();
            if (self.start != nullptr) self.start->finished = true;
            return self.scope != nullptr ? self.scope->finish(self) : std::noop_coroutine();
        }
        void await_resume() const noexcept {}
    };

    ScopeChild get_return_object() noexcept { return {*this}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    void unhandled_exception() noexcept {
        if (scope != nullptr) scope->fail(std::current_exception());
    }

    std::coroutine_handle<promise_type> handle() noexcept {
        return std::coroutine_handle<promise_type>::from_promise(*this);
    }

    ScopeState* scope = nullptr; // null: it was destroyed by this child
    Start* start = nullptr;
};

template <class A>
ScopeChild scope_child(A awaitable) {
    co_await awaited<A>(awaitable);
}

class JoinAwaiter {
public:
    explicit JoinAwaiter(ScopeState& scope) noexcept : scope_(&scope) {}
    JoinAwaiter(const JoinAwaiter&) = delete;
    JoinAwaiter& operator=(const JoinAwaiter&) = delete;
    ~JoinAwaiter() {
        if (scope_ != nullptr && scope_->joiner_ == this) scope_->joiner_ = nullptr;
    }

    bool await_ready() const noexcept { return scope_->running_.empty(); }
    void await_suspend(std::coroutine_handle<> awaiting) {
        if (scope_->joiner_ != nullptr) throw std::logic_error("asyncverbs::Scope: joined twice");
        awaiting_ = awaiting;
        scope_->joiner_ = this;
    }
    void await_resume() const {
        scope_->reap();
        if (std::exception_ptr first = std::exchange(scope_->exception_, nullptr)) {
            std::rethrow_exception(std::move(first));
        }
    }

private:
    friend ScopeState;

    ScopeState* scope_; // null: it was destroyed
    std::coroutine_handle<> awaiting_;
};

class JoinOperation {
public:
    explicit JoinOperation(ScopeState& scope) noexcept : scope_(&scope) {}

    JoinAwaiter operator co_await() && noexcept { return JoinAwaiter(*scope_); }

private:
    ScopeState* scope_;
};

inline void ScopeState::start(ScopeChild spawned) {
    typename ScopeChild::promise_type& child = spawned.promise;
    reap();
    typename ScopeChild::Start start{child, starting_};
    starting_ = child.start = &start;
    child.scope = this;
    running_.push_back(child);
    child.handle().resume();
    if (!start.scope_gone) starting_ = start.outer;
    child.start = nullptr;
    if (start.finished || start.scope_gone) child.handle().destroy();
}

inline std::coroutine_handle<>
ScopeState::finish(typename ScopeChild::promise_type& child) noexcept {
    child.unlink();
    if (child.start == nullptr) finished_.push_back(child);
    if (!running_.empty() || joiner_ == nullptr) return std::noop_coroutine();
    return std::exchange(joiner_, nullptr)->awaiting_;
}

inline void ScopeState::reap() noexcept {
    while (!finished_.empty()) finished_.take_front().handle().destroy();
}

inline ScopeState::~ScopeState() {
    if (joiner_ != nullptr) joiner_->scope_ = nullptr;
    joiner_ = nullptr;
    // Children that run now are left to the spawn() that started them.
    for (typename ScopeChild::Start* start = starting_; start != nullptr; start = start->outer) {
        start->scope_gone = true;
        start->child.scope = nullptr;
        start->child.unlink();
    }
    // What a child destroys may let another one end.
    while (!running_.empty()) running_.take_front().handle().destroy();
    reap();
}

} // namespace asyncverbs::detail

namespace asyncverbs {

/// Runs any number of awaitables at the same time and waits for all of them.
///
///     Scope scope;
///     for (Client& client : clients) scope.spawn(serve(client));
///     co_await scope.join();
///
/// Thread: one. spawn(), join(), the destructor and the ends of the children, all on the same.
/// Lifetime: destroying a scope never blocks; it destroys the children that are still suspended,
/// as destroying a Task does, and a coroutine that is suspended in join() is never resumed. A
/// child must not destroy its own scope after its first suspension: it would destroy itself while
/// it runs. What a child took is destroyed by the next spawn() or join() at the latest.
/// Errors: the others run on when a child fails. join() rethrows the exception that came first and
/// drops those that came after it; nobody learns of them if join() is never awaited.
/// Cancellation: of the children, by the std::stop_token that they were given.
class Scope {
public:
    Scope() noexcept = default;
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

    /// Starts `awaitable`, which runs at once, up to its first suspension, before spawn() returns.
    /// Its result is dropped.
    template <class A>
        requires awaitable<A> && std::move_constructible<A>
    void spawn(A awaitable);

    /// `co_await scope.join()` continues when no child is left, at once if there is none; children
    /// that are spawned meanwhile count. The scope can be used again afterwards. One join at a
    /// time: a second one throws std::logic_error.
    [[nodiscard]] detail::JoinOperation join() noexcept { return detail::JoinOperation(state_); }

private:
    detail::ScopeState state_;
};

inline Scope::~Scope() = default;

template <class A>
    requires awaitable<A> && std::move_constructible<A>
void Scope::spawn(A awaitable) {
    state_.start(detail::scope_child(std::move(awaitable)));
}

} // namespace asyncverbs
