// SPDX-License-Identifier: MIT
// All public headers except the adapters, which need other libraries, and the conformance suites,
// which are tests themselves.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/rdma/stream.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

// Called by an inline function of verbs.h that the library does not use. All inline functions are
// kept in this file, so it has to link.
ssize_t _ibv_query_gid_table(ibv_context*, ibv_gid_entry*, size_t, uint32_t, size_t) { return -1; }
