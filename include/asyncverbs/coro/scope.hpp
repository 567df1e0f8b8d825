// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <concepts>
#include <coroutine>
#include <exception>
#include <stdexcept>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>

namespace asyncverbs {

namespace detail {
struct ScopeChild;
class ScopeJoin;
} // namespace detail

/// Runs any number of awaitables at the same time and waits for all of them.
///
///     Scope scope;
///     for (Client& client : clients) scope.spawn(serve(client));
///     co_await scope.join();
///
/// Thread: one. Call spawn(), join() and the destructor, and complete the children, on the same
/// thread.
/// Lifetime: the destructor never blocks. It destroys the children that are still suspended, as
/// destroying a Task does; a coroutine that is suspended in join() is never resumed. A child may
/// destroy its own scope before its first suspension, but not after it, as it would destroy itself
/// while it runs. The next spawn() or join() destroys the awaitables of children that have ended.
/// Errors: if a child fails, the others continue. join() rethrows the exception that came first and
/// drops the later ones. If join() is never awaited, exceptions are lost.
/// Cancellation: cancel the children by the std::stop_token that they were given.
class Scope {
public:
    Scope() noexcept;
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope();

    /// Starts `awaitable`: it runs up to its first suspension before spawn() returns. Its result is
    /// dropped.
    template <class A>
        requires awaitable<A> && std::move_constructible<A>
    void spawn(A awaitable);

    /// `co_await scope.join()` continues when no child is left, at once if there is none; it also
    /// waits for children that are spawned in the meantime. The scope can be used again afterwards.
    /// One join at a time: a second one throws std::logic_error.
    [[nodiscard]] detail::ScopeJoin join() noexcept;

private:
    friend struct detail::ScopeChild;
    friend class detail::ScopeJoin;

    struct Start;

    void start(detail::ScopeChild& child);
    std::coroutine_handle<> finish(detail::ScopeChild& child) noexcept;
    void destroy_finished() noexcept;

    detail::IntrusiveList<detail::ScopeChild> running_;
    // A child cannot destroy its own frame at its end. The scope does it later.
    detail::IntrusiveList<detail::ScopeChild> finished_;
    Start* starting_ = nullptr;
    detail::ScopeJoin* joiner_ = nullptr;
    std::exception_ptr exception_;
};

// A call of start() that has not returned yet. The child that it resumes may end, or destroy the
// scope.
struct Scope::Start {
    detail::ScopeChild& child;
    Start* outer; // the spawn() that this one is nested in
    bool finished = false;
    bool scope_destroyed = false;
};

namespace detail {

// The promise of a coroutine that awaits what was spawned.
struct ScopeChild : LazyPromise, ListNode {
    struct Coroutine {
        using promise_type = ScopeChild;
        ScopeChild& child;
    };

    template <class A>
    static Coroutine run(A awaitable) {
        co_await awaited<A>(awaitable);
    }

    Coroutine get_return_object() noexcept { return {*this}; }
    void return_void() const noexcept {}
    void unhandled_exception() noexcept {
        if (scope != nullptr && !scope->exception_) scope->exception_ = std::current_exception();
    }
    std::coroutine_handle<> on_final_suspend() noexcept {
        if (start != nullptr) start->finished = true;
        return scope != nullptr ? scope->finish(*this) : std::noop_coroutine();
    }

    std::coroutine_handle<> handle() noexcept {
        return std::coroutine_handle<ScopeChild>::from_promise(*this);
    }

    Scope* scope = nullptr; // null: this child has destroyed it
    Scope::Start* start = nullptr;
};

// Movable until it is awaited.
class [[nodiscard]] ScopeJoin : AwaitedByReference {
public:
    explicit ScopeJoin(Scope& scope) noexcept : scope_(scope) {}
    ScopeJoin(ScopeJoin&& other) noexcept : scope_(other.scope_) {}
    ScopeJoin& operator=(ScopeJoin&&) = delete;
    ~ScopeJoin() {
        if (awaiting_) scope_.joiner_ = nullptr;
    }

    bool await_ready() const noexcept { return scope_.running_.empty(); }
    void await_suspend(std::coroutine_handle<> awaiting) {
        if (scope_.joiner_ != nullptr) throw std::logic_error("asyncverbs::Scope: joined twice");
        awaiting_ = awaiting;
        scope_.joiner_ = this;
    }
    void await_resume() const {
        scope_.destroy_finished();
        if (std::exception_ptr first = std::exchange(scope_.exception_, nullptr)) {
            std::rethrow_exception(std::move(first));
        }
    }

private:
    friend Scope;

    Scope& scope_;
    std::coroutine_handle<> awaiting_; // set while this is the scope's joiner
};

} // namespace detail

inline Scope::Scope() noexcept = default;

template <class A>
    requires awaitable<A> && std::move_constructible<A>
void Scope::spawn(A awaitable) {
    start(detail::ScopeChild::run(std::move(awaitable)).child);
}

inline detail::ScopeJoin Scope::join() noexcept { return detail::ScopeJoin(*this); }

inline void Scope::start(detail::ScopeChild& child) {
    destroy_finished();
    Start start{child, starting_};
    starting_ = child.start = &start;
    child.scope = this;
    running_.push_back(child);
    child.handle().resume();
    if (!start.scope_destroyed) starting_ = start.outer;
    child.start = nullptr;
    if (start.finished || start.scope_destroyed) child.handle().destroy();
}

inline std::coroutine_handle<> Scope::finish(detail::ScopeChild& child) noexcept {
    child.unlink();
    if (child.start == nullptr) finished_.push_back(child); // otherwise start() destroys it
    if (!running_.empty() || joiner_ == nullptr) return std::noop_coroutine();
    return std::exchange(std::exchange(joiner_, nullptr)->awaiting_, nullptr);
}

inline void Scope::destroy_finished() noexcept {
    while (!finished_.empty()) finished_.take_front().handle().destroy();
}

inline Scope::~Scope() {
    if (joiner_ != nullptr) std::exchange(joiner_, nullptr)->awaiting_ = nullptr;
    // A child that runs now cannot be destroyed. The start() that resumed it does that.
    for (Start* start = starting_; start != nullptr; start = start->outer) {
        start->scope_destroyed = true;
        start->child.scope = nullptr;
        start->child.unlink();
    }
    // Destroying a child may let another one end, so take them one by one.
    while (!running_.empty()) running_.take_front().handle().destroy();
    destroy_finished();
}

} // namespace asyncverbs
