// SPDX-License-Identifier: MIT
// Every public header, for a build in which also what nobody calls is compiled. Without the
// conformance suite, which is a test itself and has a program of its own.
#include "consume/one_definition/every_class.hpp"
