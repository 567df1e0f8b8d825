// SPDX-License-Identifier: MIT
// Makes io_uring_submit fail: link with --wrap=io_uring_submit.
#pragma once

namespace asyncverbs::support {

/// The next `times` calls do nothing but return -error.
void fail_submits(int error, int times) noexcept;

/// How many did, since fail_submits().
int failed_submits() noexcept;

} // namespace asyncverbs::support
