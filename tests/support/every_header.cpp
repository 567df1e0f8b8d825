// SPDX-License-Identifier: MIT
// All public headers, for a build that compiles uncalled functions, too. Without the conformance
// suite, which is a test itself and has its own program.
#include "consume/one_definition/every_class.hpp"
