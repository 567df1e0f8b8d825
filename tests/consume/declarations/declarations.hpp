// SPDX-License-Identifier: MIT
// A header of a user. It names classes of the library without including their headers.
#pragma once

namespace asyncverbs {
class AddressHandle;
class AsyncCq;
class AsyncQp;
class AsyncSrq;
class Completion;
class CompletionChannel;
class CompletionQueue;
class Connection;
class Context;
class CqPoller;
class DeviceList;
class EpollExecutor;
class EpollNotifier;
class ExecutorPool;
class IncomingConnection;
class Listener;
class ManualNotifier;
class MemoryRegion;
class Operation;
class OutgoingConnection;
class ProtectionDomain;
class QueuePair;
class Router;
class Scope;
class SendRequest;
class SharedReceiveQueue;
class SocketAddress;
class Stream;
struct AsyncCqOptions;
struct CqStatistics;
struct QueuePairAddress;
struct QueuePairOptions;
struct Slice;
} // namespace asyncverbs

struct Session {
    asyncverbs::AsyncCq* cq;
    asyncverbs::QueuePair* queue_pair;
    asyncverbs::Router* router;
    asyncverbs::Stream* stream;
};
