// SPDX-License-Identifier: MIT
#include "support/run_tests.hpp"

int main(int argc, char** argv) { return asyncverbs::support::run_tests(argc, argv); }
