// SPDX-License-Identifier: MIT
// Ends a compilation that cannot succeed after one error. Public headers include this file first,
// so that the cause is not lost among the errors that follow from it.
#pragma once

#if __cplusplus < 202002L
#error "asyncverbs needs C++20: compile with -std=c++20 or newer"
#elif !defined(__cpp_exceptions)
#error "asyncverbs needs exceptions: compile without -fno-exceptions"
#else

#include <version>

#if !defined(__cpp_lib_jthread)
#error "asyncverbs needs std::stop_token: libc++ has it with -fexperimental-library"
#else
#define ASYNCVERBS_REQUIREMENTS_MET
#endif
#endif

#if !defined(ASYNCVERBS_REQUIREMENTS_MET)
// Compilers continue after #error, but not after a header that does not exist.
#include <asyncverbs/see_the_error_above>
#endif
