// SPDX-License-Identifier: MIT
// The properties that coroutine libraries require of what is awaited, for each awaitable of the
// library. A new one is added to the tables, which are checked at compile time.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/rdma/stream.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#include "support/foreign/qcoro_task.hpp"

using namespace asyncverbs;

namespace {

// libunifex moves the awaiter before it suspends, if it is not a reference to the awaitable.
template <class A>
constexpr bool has_movable_awaiter =
    std::move_constructible<A> && std::move_constructible<detail::awaiter_t<A>>;

// Awaitable as an rvalue and as an lvalue. The awaiter of an lvalue is no reference: where a
// promise returns the lvalue from its await_transform(), as QCoro's does, GCC 12 would copy it.
template <class A>
constexpr bool awaitable_in_any_coroutine =
    awaitable<A> && awaitable<A&> && has_movable_awaiter<A> &&
    !std::is_reference_v<detail::awaiter_t<A&>> && std::move_constructible<detail::awaiter_t<A&>> &&
    foreign::qcoro_awaitable<A> && foreign::qcoro_awaitable<A&>;

// Uses up what it owns. So it is awaited once, and only as an rvalue.
template <class A>
constexpr bool awaitable_once =
    awaitable<A> && !awaitable<A&> && has_movable_awaiter<A> && foreign::qcoro_awaitable<A>;

template <class T>
T& a() noexcept;
using Bytes = std::span<std::byte>;

static_assert(awaitable_in_any_coroutine<PollOperation>);
static_assert(awaitable_in_any_coroutine<PollWrIdOperation>);
static_assert(awaitable_in_any_coroutine<Operation>);
static_assert(awaitable_in_any_coroutine<decltype(a<Operation>().wait(std::stop_token()))>);
static_assert(awaitable_in_any_coroutine<decltype(a<AsyncQp>().drain())>);
static_assert(awaitable_in_any_coroutine<decltype(a<BufferPool<EpollExecutor>>().acquire())>);
static_assert(awaitable_in_any_coroutine<decltype(a<Stream>().read_some(Bytes()))>);
static_assert(awaitable_in_any_coroutine<decltype(a<Stream>().write_all(Bytes()))>);
static_assert(awaitable_in_any_coroutine<decltype(a<Stream>().shutdown_write())>);
static_assert(awaitable_in_any_coroutine<decltype(a<Stream>().close())>);
static_assert(awaitable_in_any_coroutine<decltype(a<Scope>().join())>);
static_assert(awaitable_in_any_coroutine<decltype(a<EpollExecutor>().schedule())>);
static_assert(
    awaitable_in_any_coroutine<decltype(a<EpollExecutor>().sleep_for(std::chrono::nanoseconds()))>);
static_assert(awaitable_in_any_coroutine<
              decltype(a<EpollExecutor>().sleep_until(std::chrono::steady_clock::time_point()))>);
static_assert(awaitable_in_any_coroutine<decltype(a<EpollNotifier>().readable(std::stop_token()))>);
static_assert(awaitable_in_any_coroutine<decltype(a<Listener>().accept())>);
static_assert(awaitable_in_any_coroutine<decltype(a<Connection>().disconnected())>);
static_assert(awaitable_in_any_coroutine<decltype(a<Connection>().disconnect())>);

static_assert(awaitable_once<Task<>>); // also connect(), resolve(), when_all() and with_timeout()
static_assert(awaitable_once<Task<int>>);
static_assert(awaitable_once<decltype(a<IncomingConnection>().accept(a<QueuePair>()))>);
static_assert(awaitable_once<decltype(a<OutgoingConnection>().connect(a<QueuePair>()))>);

} // namespace
