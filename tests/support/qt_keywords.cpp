// SPDX-License-Identifier: MIT
// The headers compile after those of Qt, which define these macros.
#define signals public
#define slots
#define emit
#define foreach Q_FOREACH
#define forever for (;;)

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/rdma/stream.hpp>
