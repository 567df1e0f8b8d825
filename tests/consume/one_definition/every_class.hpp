// SPDX-License-Identifier: MIT
// All members of all class templates, which including a header does not compile.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <memory>

namespace asyncverbs {

template class BufferPool<EpollExecutor>;
template class DeviceEvents<EpollNotifier>;
template class SharedChannel<EpollNotifier>;
template class SharedChannel<ManualNotifier>; // not a TimedCqNotifier
template class Task<>;
template class Task<int&>;
template class Task<std::unique_ptr<int>>;

} // namespace asyncverbs
