// SPDX-License-Identifier: MIT
// The umbrella for completions: the owners of libibverbs' objects, AsyncCq, tasks, and an executor.
// To keep it cheap to compile, the rest has headers of its own: rdma.hpp (operations of queue
// pairs), cm.hpp (connections by address), executor/executor_pool.hpp (one executor per core),
// cq/shared_channel.hpp, adapters/ (other event loops) and testing/.
#pragma once

#include <asyncverbs/requirements.hpp>

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
#include <asyncverbs/verbs/memory.hpp>
#include <asyncverbs/verbs/memory_window.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
#include <asyncverbs/verbs/shared_receive_queue.hpp>
#include <asyncverbs/version.hpp>

/// The library. Its namespace `detail`, and the folders of that name, are not part of the
/// interface.
namespace asyncverbs {}
