// SPDX-License-Identifier: MIT
// Everything but the adapters for foreign event loops and the helpers for tests.
#pragma once

#include <asyncverbs/core/async_cq.hpp>
#include <asyncverbs/core/epoll_executor.hpp>
#include <asyncverbs/core/scope.hpp>
#include <asyncverbs/core/sync_wait.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/core/when_all.hpp>
#include <asyncverbs/verbs/queue_pair.hpp>
