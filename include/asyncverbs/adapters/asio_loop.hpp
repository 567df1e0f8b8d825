// SPDX-License-Identifier: MIT
// Asio's event loop as the rest of this library asks for one: whoever takes a loop, such as
// AsyncCq::create(), Router::create(), connect() or a Listener, lives in an io_context by it.
#pragma once

#include <utility>

#include <asyncverbs/adapters/asio_notifier.hpp>
#include <asyncverbs/adapters/detail/asio_flavour.hpp>

namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR {

/// Makes notifiers on an executor: that of an io_context which one thread runs, or a strand.
///
///     asio::io_context io;
///     AsioLoop loop(io);
///     AsyncCq cq = AsyncCq::create(context, 64, loop);
///
/// Notifiers do not refer to it, and may outlive it.
template <class Executor = detail::net::any_io_executor>
class AsioLoop {
public:
    using executor_type = Executor; ///< As in Asio's I/O objects.

    /// On `executor`.
    explicit AsioLoop(Executor executor) : executor_(std::move(executor)) {}

    /// On the executor of `context`, an io_context.
    template <detail::AsioContext Context>
    explicit AsioLoop(Context& context) : executor_(context.get_executor()) {}

    /// Errors as in AsioNotifier's constructor.
    [[nodiscard]] AsioNotifier<Executor> notifier(int fd) const {
        return AsioNotifier<Executor>(executor_, fd);
    }

    /// Where its notifiers wait.
    [[nodiscard]] Executor get_executor() const noexcept { return executor_; }

private:
    Executor executor_;
};

/// On an io_context, the executor is the context's own type.
template <detail::AsioContext Context>
AsioLoop(Context&) -> AsioLoop<typename Context::executor_type>;

} // namespace asyncverbs::inline ASYNCVERBS_ASIO_FLAVOUR
