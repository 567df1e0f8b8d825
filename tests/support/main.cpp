// SPDX-License-Identifier: MIT
//
// The entry point of a test program. Catch2 v2 compiles its runner here; with v3 this main takes
// the place of the one in Catch2WithMain, so that a program links whichever library is there.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>

int main(int argc, char** argv) { return Catch::Session().run(argc, argv); }
#else
// GCC 12 with sanitizers takes the uninitialised half of a union in <regex> for a mistake.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
