// SPDX-License-Identifier: MIT
// The exception that is being handled, as what all who wait for a completion queue are told.
#pragma once

#include <exception>
#include <system_error>

namespace asyncverbs::detail {

/// To be called in a catch block. Keeps the code of a std::system_error.
inline std::system_error current_failure() {
    const auto code = std::make_error_code(std::errc::state_not_recoverable);
    try {
        throw;
    } catch (const std::system_error& error) {
        return error;
    } catch (const std::exception& error) {
        return std::system_error(code, error.what());
    } catch (...) {
        return std::system_error(code, "an exception of unknown type");
    }
}

} // namespace asyncverbs::detail
