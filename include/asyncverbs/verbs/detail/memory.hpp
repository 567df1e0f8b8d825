// SPDX-License-Identifier: MIT
// std::shared_ptr and std::unique_ptr. <memory> has parallel algorithms besides: with libstdc++
// that is a twentieth of what this library takes to compile, so there only the parts that are
// needed.
#pragma once

#if __has_include(<bits/shared_ptr.h>)
#include <bits/shared_ptr.h> // IWYU pragma: export
#include <bits/unique_ptr.h> // IWYU pragma: export
#else
#include <memory> // IWYU pragma: export
#endif
