// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace asyncverbs::support {

/// main() of a test program. Of the tests that the command line selects, runs those with the tag
/// `selection`, or without it if `selection` begins with "~". Prints which tests this leaves out,
/// after the words "skipped, because" and the reason.
int run_tests(int argc, char** argv, const std::string& selection = "",
              const std::string& reason = "");

} // namespace asyncverbs::support
