// SPDX-License-Identifier: MIT
// Asio comes alone and in Boost, in another namespace and with another error_code. The adapter is
// written once, for `net`. Its own names are in an inline namespace for each flavour, so that two
// translation units of one program may use one each.
#pragma once

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_allocator.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/version.hpp>
#include <boost/system/system_error.hpp>
#if BOOST_ASIO_VERSION < 101800
#error "asyncverbs needs Boost 1.74 or newer"
#endif
#if BOOST_ASIO_VERSION >= 101900
#include <boost/asio/associated_cancellation_slot.hpp>
#define ASYNCVERBS_ASIO_CANCELLATION
#endif
#define ASYNCVERBS_ASIO_FLAVOUR with_boost_asio
#else
#include <asio/any_io_executor.hpp>
#include <asio/associated_allocator.hpp>
#include <asio/associated_executor.hpp>
#include <asio/async_result.hpp>
#include <asio/dispatch.hpp>
#include <asio/error.hpp>
#include <asio/execution.hpp>
#include <asio/execution_context.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/query.hpp>
#include <asio/steady_timer.hpp>
#include <asio/version.hpp>
#if ASIO_VERSION < 102200
#error "asyncverbs needs Asio 1.22 or newer"
#endif
#include <asio/associated_cancellation_slot.hpp>
#define ASYNCVERBS_ASIO_CANCELLATION
#define ASYNCVERBS_ASIO_FLAVOUR with_asio
#endif

#include <cerrno>
#include <system_error>
#include <type_traits>

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

#if defined(ASYNCVERBS_BOOST_ASIO)
namespace net = boost::asio;
using AsioError = boost::system::error_code;
using AsioSystemError = boost::system::system_error;
#else
namespace net = ::asio;
using AsioError = std::error_code;
using AsioSystemError = std::system_error;
#endif

inline std::error_code from_asio(const AsioError& error) {
    // Whether it equals the standard's "cancelled" depends on the version of Asio.
    if (error == net::error::operation_aborted) {
        return std::make_error_code(std::errc::operation_canceled);
    }
    if (error.category() == net::error::get_system_category()) {
        return {error.value(), std::system_category()};
    }
    return error;
}

// A template, for it converts in a way that Boost has had only since 1.76.
template <class Error = AsioError>
Error to_asio(const std::error_code& error) {
    if (error == std::errc::operation_canceled) return net::error::operation_aborted;
    if constexpr (std::is_constructible_v<Error, const std::error_code&>) {
        return Error(error);
    } else {
        const std::error_condition condition = error.default_error_condition();
        const bool is_errno = condition.category() == std::generic_category();
        return Error(is_errno ? condition.value() : EIO, Error().category());
    }
}

// An io_context, or whatever else has executors of one type.
template <class Context>
concept AsioContext = std::is_convertible_v<Context&, net::execution_context&> &&
                      requires { typename Context::executor_type; };

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
