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
