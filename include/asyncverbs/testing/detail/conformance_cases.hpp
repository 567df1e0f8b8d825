// SPDX-License-Identifier: MIT
// How a function that tries one clause becomes a case: it gets a loop of its own, and whatever it
// throws names the case and the clause.
#pragma once

#include <chrono>
#include <exception>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <asyncverbs/testing/conformance_case.hpp>
#include <asyncverbs/testing/detail/conformance_bench.hpp>

namespace asyncverbs::detail::conformance {

[[noreturn]] inline void fail(std::string_view name, std::string_view clause,
                              std::string_view what) {
    std::string text(name);
    text.append(": ").append(what).append("\n        the contract: ").append(clause);
    throw ConformanceFailure(text);
}

/// Calls `body`; what it throws becomes a ConformanceFailure.
template <class Body>
void run_case(std::string_view name, std::string_view clause, const Body& body) {
    try {
        body();
    } catch (const ConformanceFailure& failure) {
        fail(name, clause, failure.what());
    } catch (const std::exception& error) {
        fail(name, clause, std::string("an exception: ") + error.what());
    } catch (...) {
        fail(name, clause, "an exception that is no std::exception");
    }
}

template <class Harness>
class CaseList {
public:
    explicit CaseList(std::chrono::milliseconds patience) : patience_(patience) {}

    /// `body` is called with a Bench.
    template <class Body>
    void add(std::string_view name, std::string_view clause, Body body) {
        cases_.push_back({name, clause, [name, clause, body, patience = patience_] {
                              run_case(name, clause, [&] {
                                  Bench<Harness> bench(name, patience);
                                  body(bench);
                              });
                          }});
    }

    std::vector<ConformanceCase> take() { return std::move(cases_); }

private:
    const std::chrono::milliseconds patience_;
    std::vector<ConformanceCase> cases_;
};

} // namespace asyncverbs::detail::conformance
