// SPDX-License-Identifier: MIT
// How every layer reports errors: a failed verb by its name and errno, invalid input by its value
// and the valid range, a failed completion by its ibv_wc_status.
#pragma once

#include <asyncverbs/requirements.hpp>

#include <infiniband/verbs.h>
#include <sys/resource.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace asyncverbs {

/// Throws std::system_error for a verb that failed; what() reads "ibv_create_cq: Cannot allocate
/// memory". `error` is an errno value of either sign, because providers differ. 0, from a provider
/// that failed without setting errno, is reported as EIO.
[[noreturn]] inline void throw_verb_error(const char* verb, int error) {
    const int positive = error < 0 ? -error : error;
    throw std::system_error(positive == 0 ? EIO : positive, std::system_category(), verb);
}

/// The category of completion status: its values are those of ibv_wc_status, its messages those of
/// ibv_wc_status_str(3), its name is "ibv_wc_status".
[[nodiscard]] inline const std::error_category& wc_status_category() noexcept {
    class WcStatusCategory final : public std::error_category {
    public:
        const char* name() const noexcept override { return "ibv_wc_status"; }
        std::string message(int status) const override {
            // Converting a value outside the enumeration would be undefined.
            if (status < IBV_WC_SUCCESS || status > IBV_WC_TM_RNDV_INCOMPLETE) {
                return "unknown status " + std::to_string(status);
            }
            return ibv_wc_status_str(static_cast<ibv_wc_status>(status));
        }
    };
    static const WcStatusCategory category;
    return category;
}

/// The status of a completion as an error code of wc_status_category(). IBV_WC_SUCCESS gives
/// std::error_code(), no error.
[[nodiscard]] inline std::error_code make_wc_error(ibv_wc_status status) noexcept {
    if (status == IBV_WC_SUCCESS) {
        return {};
    }
    return {static_cast<int>(status), wc_status_category()};
}

namespace detail {

// Reports invalid input; what() reads "<text>: <message of the error>".
[[noreturn]] inline void throw_error(std::errc error, const std::string& text) {
    throw std::system_error(std::make_error_code(error), text);
}

// The errno, positive, of a verb that returned NULL. Callers set errno to 0 before the call:
// otherwise a provider that does not set it would be reported with an older error.
[[nodiscard]] inline int verb_errno() noexcept { return errno < 0 ? -errno : errno; }

// The errno, positive, of a verb that returned `result`, which is not 0. Verbs report in three
// ways: errno, -errno, and -1 with errno set. Callers set errno to 0 before the call, to tell the
// last two apart: -1 with errno still 0 is -EPERM.
[[nodiscard]] inline int verb_errno(int result) noexcept {
    if (result == -1 && errno != 0) {
        return verb_errno();
    }
    return result < 0 ? -result : result;
}

// The usual cause if memory cannot be registered: " (the limit on locked memory …)". Empty if there
// is no limit. With a limit of 0 the kernel fails with EPERM, else with ENOMEM.
[[nodiscard]] inline std::string locked_memory_hint(int error) {
    rlimit limit{};
    if ((error != ENOMEM && error != EPERM) || getrlimit(RLIMIT_MEMLOCK, &limit) != 0 ||
        limit.rlim_cur == RLIM_INFINITY) {
        return {};
    }
    return " (the limit on locked memory is " + std::to_string(limit.rlim_cur / 1024) +
           " kB; raise it with ulimit -l)";
}

// Throws invalid_argument unless low <= value <= high; `where` names the object with these limits.
inline void check_range(const std::string& what, long long value, long long low, long long high,
                        const std::string& where) {
    if (value < low || value > high) {
        throw_error(std::errc::invalid_argument,
                    what + " " + std::to_string(value) + " is out of range for " + where +
                        (high < low ? ", which has none"
                                    : ": valid are " + std::to_string(low) + " to " +
                                          std::to_string(high)));
    }
}

} // namespace detail
} // namespace asyncverbs
