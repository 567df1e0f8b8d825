// SPDX-License-Identifier: MIT
// Completions to await: what owns the objects of libibverbs, AsyncCq, and an executor. What builds
// on them is in headers of its own, so that who needs less compiles less: rdma.hpp, operations of
// queue pairs; cm.hpp, connections by address; core/executor_pool.hpp, many cores; adapters/;
// testing/.
#pragma once

#if __cplusplus < 202002L
#error "asyncverbs needs C++20: compile with -std=c++20 or newer"
#endif

#include <version>

#if !defined(__cpp_lib_jthread)
#error "asyncverbs needs std::stop_token: libc++ has it with -fexperimental-library"
#endif

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/sync_wait.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/coro/when_all.hpp>
#include <asyncverbs/cq/async_cq.hpp>
#include <asyncverbs/cq/cq_poller.hpp>
#include <asyncverbs/cq/device_events.hpp>
#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/verbs/address_handle.hpp>
#include <asyncverbs/verbs/completion_queue.hpp>
#include <asyncverbs/verbs/device.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/gid.hpp>
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>
#include <asyncverbs/version.hpp>

/// The library. What is in its namespace `detail`, or in a folder of that name, is not for users.
namespace asyncverbs {}
