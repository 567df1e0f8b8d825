// SPDX-License-Identifier: MIT
// The entry point of a test program. Catch2 v2 compiles its runner here; with v3 this main replaces
// the one of Catch2WithMain, so that both versions link the same way.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_session.hpp>

int main(int argc, char** argv) { return Catch::Session().run(argc, argv); }
#else
// GCC 12 with sanitizers warns about an uninitialised union in <regex>.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
