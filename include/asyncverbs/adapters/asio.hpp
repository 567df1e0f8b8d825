// SPDX-License-Identifier: MIT
// Asio: standalone 1.22 and newer with the CMake target asyncverbs::asio, Boost.Asio 1.74 and newer
// with asyncverbs::boost_asio, which defines ASYNCVERBS_BOOST_ASIO.
#pragma once

#include <asyncverbs/adapters/asio_cq.hpp>
#include <asyncverbs/adapters/asio_loop.hpp>
#include <asyncverbs/adapters/asio_notifier.hpp>
