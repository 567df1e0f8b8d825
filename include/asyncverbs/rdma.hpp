// SPDX-License-Identifier: MIT
// Operations of queue pairs, awaited; a pool of buffers and a byte stream.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/buffer_pool.hpp>
#include <asyncverbs/rdma/router.hpp>
#include <asyncverbs/rdma/stream.hpp>
