// SPDX-License-Identifier: MIT
// Problems that the audit finds fail the running test. A separate object file of the archive: a
// program without Catch2 defines report_problem() itself and does not link this one.
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include "support/catch.hpp"

void asyncverbs::simulated::report_problem(const std::string& problem) { FAIL_CHECK(problem); }
