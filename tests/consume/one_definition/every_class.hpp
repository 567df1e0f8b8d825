// SPDX-License-Identifier: MIT
// All members of all class templates, which including a header does not compile.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/core/executor_pool.hpp>
#include <asyncverbs/core/shared_channel.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <memory>

namespace asyncverbs {

template class BasicAddressHandle<OnUse>;
template class BasicAsyncCq<OnUse>;
template class BasicAsyncQp<OnUse>;
template class BasicAsyncSrq<OnUse>;
template class BasicCompletionChannel<OnUse>;
template class BasicCompletionQueue<OnUse>;
template class BasicConnection<OnUse>;
template class BasicContext<OnUse>;
template class BasicCqPoller<OnUse>;
template class BasicDeviceList<OnUse>;
template class BasicEpollExecutor<OnUse>;
template class BasicEpollNotifier<OnUse>;
template class BasicExecutorPool<OnUse>;
template class BasicIncomingConnection<OnUse>;
template struct BasicInitOptions<OnUse>;
template class BasicListener<OnUse>;
template class BasicMemoryRegion<OnUse>;
template class BasicOperation<OnUse>;
template class BasicOutgoingConnection<OnUse>;
template class BasicPollOperation<OnUse>;
template class BasicPollWrIdOperation<OnUse>;
template class BasicProtectionDomain<OnUse>;
template class BasicQueuePair<OnUse>;
template class BasicRouter<OnUse>;
template struct BasicRtrOptions<OnUse>;
template class BasicScope<OnUse>;
template class BasicSharedReceiveQueue<OnUse>;
template struct BasicSlice<OnUse>;
template class BasicStream<OnUse>;
template class BufferPool<EpollExecutor>;
template class DeviceEvents<EpollNotifier>;
template class SharedChannel<EpollNotifier>;
template class SharedChannel<ManualNotifier>; // not a TimedCqNotifier
template class Task<>;
template class Task<int&>;
template class Task<std::unique_ptr<int>>;

} // namespace asyncverbs
