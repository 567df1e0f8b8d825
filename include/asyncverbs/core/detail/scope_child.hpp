// SPDX-License-Identifier: MIT
// The children of a Scope and how they end. A child that has ended does not destroy its own frame,
// on which it still stands, but leaves that to its scope.
#pragma once

#include <coroutine>
#include <exception>
#include <stdexcept>
#include <utility>

#include <asyncverbs/core/awaitable.hpp>
#include <asyncverbs/core/detail/branch.hpp>
#include <asyncverbs/core/detail/intrusive_list.hpp>

namespace asyncverbs::detail {

template <class Use>
class ScopeState;
template <class Use>
class JoinAwaiter;

template <class Use>
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

template <class Use>
class ScopeState {
public:
    ScopeState() noexcept = default;
    ScopeState(const ScopeState&) = delete;
    ScopeState& operator=(const ScopeState&) = delete;
    ~ScopeState();

    void start(ScopeChild<Use> spawned);
    void fail(std::exception_ptr exception) noexcept {
        if (!exception_) exception_ = std::move(exception);
    }
    std::coroutine_handle<> finish(typename ScopeChild<Use>::promise_type& child) noexcept;

private:
    friend JoinAwaiter<Use>;

    void reap() noexcept;

    IntrusiveList<typename ScopeChild<Use>::promise_type> running_;
    IntrusiveList<typename ScopeChild<Use>::promise_type> finished_;
    typename ScopeChild<Use>::Start* starting_ = nullptr;
    JoinAwaiter<Use>* joiner_ = nullptr;
    std::exception_ptr exception_;
};

template <class Use>
struct ScopeChild<Use>::promise_type : ListNode {
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

    ScopeState<Use>* scope = nullptr; // null: it was destroyed by this child
    Start* start = nullptr;
};

template <class Use, class A>
ScopeChild<Use> scope_child(A awaitable) {
    co_await awaited<A>(awaitable);
}

template <class Use>
class JoinAwaiter {
public:
    explicit JoinAwaiter(ScopeState<Use>& scope) noexcept : scope_(&scope) {}
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
    friend ScopeState<Use>;

    ScopeState<Use>* scope_; // null: it was destroyed
    std::coroutine_handle<> awaiting_;
};

template <class Use>
class JoinOperation {
public:
    explicit JoinOperation(ScopeState<Use>& scope) noexcept : scope_(&scope) {}

    JoinAwaiter<Use> operator co_await() && noexcept { return JoinAwaiter<Use>(*scope_); }

private:
    ScopeState<Use>* scope_;
};

template <class Use>
inline void ScopeState<Use>::start(ScopeChild<Use> spawned) {
    typename ScopeChild<Use>::promise_type& child = spawned.promise;
    reap();
    typename ScopeChild<Use>::Start start{child, starting_};
    starting_ = child.start = &start;
    child.scope = this;
    running_.push_back(child);
    child.handle().resume();
    if (!start.scope_gone) starting_ = start.outer;
    child.start = nullptr;
    if (start.finished || start.scope_gone) child.handle().destroy();
}

template <class Use>
inline std::coroutine_handle<>
ScopeState<Use>::finish(typename ScopeChild<Use>::promise_type& child) noexcept {
    child.unlink();
    if (child.start == nullptr) finished_.push_back(child);
    if (!running_.empty() || joiner_ == nullptr) return std::noop_coroutine();
    return std::exchange(joiner_, nullptr)->awaiting_;
}

template <class Use>
inline void ScopeState<Use>::reap() noexcept {
    while (!finished_.empty()) finished_.take_front().handle().destroy();
}

template <class Use>
inline ScopeState<Use>::~ScopeState() {
    if (joiner_ != nullptr) joiner_->scope_ = nullptr;
    joiner_ = nullptr;
    // Children that run now are left to the spawn() that started them.
    for (typename ScopeChild<Use>::Start* start = starting_; start != nullptr;
         start = start->outer) {
        start->scope_gone = true;
        start->child.scope = nullptr;
        start->child.unlink();
    }
    // What a child destroys may let another one end.
    while (!running_.empty()) running_.take_front().handle().destroy();
    reap();
}

} // namespace asyncverbs::detail
