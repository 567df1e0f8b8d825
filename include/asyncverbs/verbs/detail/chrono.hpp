// SPDX-License-Identifier: MIT
// Durations and clocks. <chrono> has a calendar besides, and streams to write it to: with libstdc++
// that is a tenth of what this library takes to compile, so there only the part that is needed.
#pragma once

#if __has_include(<bits/chrono.h>)
#include <bits/chrono.h> // IWYU pragma: export
#else
#include <chrono> // IWYU pragma: export
#endif
