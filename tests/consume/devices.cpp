// SPDX-License-Identifier: MIT
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

int devices();

int devices() { return static_cast<int>(asyncverbs::DeviceList().size()); }
