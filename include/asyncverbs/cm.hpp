// SPDX-License-Identifier: MIT
// Connections by IP address, made by librdmacm.
#pragma once

#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/connection.hpp>
#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/cm/listener.hpp>
#include <asyncverbs/cm/socket_address.hpp>
