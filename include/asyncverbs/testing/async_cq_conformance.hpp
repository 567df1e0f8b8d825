// SPDX-License-Identifier: MIT
#pragma once

#include <asyncverbs/requirements.hpp>

#include <chrono>
#include <utility>
#include <vector>

#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/async_cq_cases.hpp>
#include <asyncverbs/testing/detail/conformance_fixture.hpp>
#include <asyncverbs/testing/notifier_conformance.hpp>
#include <asyncverbs/verbs/device.hpp>

namespace asyncverbs {

/// The cases that need a device: an AsyncCq on a loop of the harness (see NotifierHarness) waits
/// for completion channels instead of the pipes of notifier_cases(). Two queue pairs of this
/// process exchange messages. `context` is any device with an active port, real or soft-RoCE
/// (`cmake/soft-roce/run`); the cases keep it open. If the harness also has
/// `notifier(const CompletionChannel&)`, that is called.
template <NotifierHarness H>
std::vector<ConformanceCase>
async_cq_cases(Context context, std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    detail::conformance::CaseList<H> cases(patience);
    detail::conformance::add_async_cq_cases(cases, std::move(context));
    return cases.take();
}

/// Runs all of them and prints the result of each. Returns how many failed, for main() to return:
///
///     int main() {
///         using asyncverbs::check_async_cq, asyncverbs::check_notifier, asyncverbs::Context;
///         return check_notifier<MyHarness>() + check_async_cq<MyHarness>(Context::open());
///     }
template <NotifierHarness H>
int check_async_cq(Context context) {
    return run_conformance(async_cq_cases<H>(std::move(context)));
}

} // namespace asyncverbs
