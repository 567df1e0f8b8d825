// SPDX-License-Identifier: MIT
// Every public header, for a build in which also what nobody calls is compiled. Without the
// conformance suite, which is a test itself and has a program of its own.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm.hpp>
#include <asyncverbs/core/executor_pool.hpp>
#include <asyncverbs/rdma.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
