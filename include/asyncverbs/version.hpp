// SPDX-License-Identifier: MIT
// The version of the library, in this one place: CMake reads it from here, and so do the packages
// that it makes, pkg-config and the documentation.
#pragma once

/// \file
/// The version.

/// The version, for `#if`: 10000 * major + 100 * minor + patch. Versions are semantic
/// (https://semver.org): while major is 0, another minor may break what compiled before.
#define ASYNCVERBS_VERSION 100
