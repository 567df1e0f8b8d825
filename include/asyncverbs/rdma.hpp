// SPDX-License-Identifier: MIT
// Operations of queue pairs, awaited, and a pool of buffers. To keep this cheap to compile, Stream
// has a header of its own, rdma/stream.hpp.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/async_srq.hpp>
#include <asyncverbs/rdma/buffer_pool.hpp>
#include <asyncverbs/rdma/router.hpp>
