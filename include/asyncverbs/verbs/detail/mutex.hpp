// SPDX-License-Identifier: MIT
// std::mutex and std::lock_guard. <mutex> has std::call_once and more besides: with libstdc++ what
// is needed is in a header of its own, which <atomic> includes anyway.
#pragma once

#if __has_include(<bits/std_mutex.h>)
#include <bits/std_mutex.h> // IWYU pragma: export
#else
#include <mutex> // IWYU pragma: export
#endif
