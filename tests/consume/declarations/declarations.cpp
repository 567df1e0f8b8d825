// SPDX-License-Identifier: MIT
#include "declarations.hpp"

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/cq/shared_channel.hpp>
#include <asyncverbs/executor/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/rdma/stream.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

bool connected(const Session& session);

bool connected(const Session& session) { return session.queue_pair->native_handle() != nullptr; }
