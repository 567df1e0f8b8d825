// SPDX-License-Identifier: MIT
// Every public header, for a build in which also what nobody calls is compiled.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>
