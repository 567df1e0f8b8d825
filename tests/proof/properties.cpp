// SPDX-License-Identifier: MIT
#include "proof/properties.hpp"

#include <algorithm>
#include <utility>

namespace asyncverbs::proof {

namespace {

std::string list(std::span<const WrId> ids) {
    std::string text;
    for (const WrId id : ids) text += (text.empty() ? "" : ", ") + std::to_string(id);
    return text;
}

} // namespace

std::string waiter_name(int waiter) { return "waiter " + std::to_string(waiter); }

Properties::Properties(const Configuration& configuration, const Run& run)
    : configuration_(configuration), run_(run),
      waiters_(static_cast<std::size_t>(configuration.waiters)) {}

void Properties::arrived(WrId id, bool quiet) {
    undelivered_.insert(id);
    if (quiet) {
        quiet_.insert(id);
    } else {
        ++wakes_owed_;
    }
}

// --- verbs ---

void Properties::polled(int count) {
    last_poll_empty_ = count == 0;
    empty_polls_ = count == 0 ? empty_polls_ + 1 : 0;
    if (arm_outstanding_) empty_since_arm_ = count == 0;
}

void Properties::about_to_arm() const {
    if (arm_outstanding_) {
        run_.violated(property::arm_once, "the event of the last arm has not been read");
    }
    if (!last_poll_empty_) {
        run_.violated(property::arm_empty, "there may be more to poll");
    }
    if (configuration_.setting == Setting::busy && empty_polls_ <= busy_polls) {
        run_.violated(property::busy, std::to_string(empty_polls_) + " polls before it is armed");
    }
}

void Properties::armed() {
    arm_outstanding_ = true;
    empty_since_arm_ = false;
    empty_polls_ = 0;
}

void Properties::event_read() {
    arm_outstanding_ = false;
    empty_since_arm_ = false;
    released_ = false; // this event must be acked
    if (configuration_.setting == Setting::solicited && wakes_owed_-- == 0) {
        run_.violated(property::solicited, "an event, but no solicited completion has arrived");
    }
}

void Properties::acked(bool all) {
    if (closing_ && all) released_ = true;
}

void Properties::touched() const {
    if (released_) {
        run_.violated(property::last_touch,
                      "once all events are acked, another thread may destroy the CQ");
    }
}

void Properties::waits() const {
    if (!arm_outstanding_) run_.violated(property::wait, "the CQ is not armed");
    if (!empty_since_arm_) run_.violated(property::wait, "no empty poll since the arm");
}

// --- waiters ---

void Properties::begins(int waiter, WrId wanted) {
    Waiter& state = at(waiter);
    state.waiting = true;
    state.wanted = wanted;
    state.cancelled_before = state.cancelled;
    state.failed_before = failure_is_known_;
    if (wanted == 0) line_.push_back(waiter);
}

void Properties::cancelled(int waiter) { at(waiter).cancelled = true; }

void Properties::leave(int waiter) {
    at(waiter).waiting = false;
    std::erase(line_, waiter);
}

void Properties::ends(int waiter, std::span<const WrId> delivered, const std::error_code& error) {
    const Waiter& state = at(waiter);
    if (closing_) run_.violated(property::closed, waiter_name(waiter));
    if (!state.waiting) run_.violated(property::once, waiter_name(waiter) + " was resumed twice");
    if (error) {
        check_error(waiter, error);
    } else if (state.cancelled_before) {
        run_.violated(property::cancel_first,
                      waiter_name(waiter) + " got a completion, but was cancelled before the poll");
    } else if (state.failed_before) {
        run_.violated(property::failure,
                      waiter_name(waiter) + " polled after the error and did not get it");
    } else if (state.wanted != 0) {
        if (delivered.size() != 1 || delivered.front() != state.wanted) {
            run_.violated(property::wr_id,
                          "not " + std::to_string(state.wanted) + ", but " + list(delivered));
        }
        if (undelivered_.erase(state.wanted) == 0) {
            run_.violated(property::once, std::to_string(state.wanted) + " was delivered before");
        }
    } else {
        check_order(waiter);
        take(delivered);
    }
    leave(waiter);
}

// An earlier waiter that still waits must have been cancelled.
void Properties::check_order(int waiter) const {
    for (const int earlier : line_) {
        if (earlier == waiter) return;
        if (!at(earlier).cancelled) {
            run_.violated(property::fifo,
                          waiter_name(waiter) + " was served before " + waiter_name(earlier));
        }
    }
}

void Properties::check_error(int waiter, const std::error_code& error) {
    if (error == std::errc::operation_canceled) {
        if (std::exchange(at(waiter).cancelled, false)) return; // a handler stays
        run_.violated(property::cancel, waiter_name(waiter) + " was not cancelled");
    }
    if (error == std::errc::io_error && failed_) {
        failure_is_known_ = true;
        return;
    }
    run_.violated(property::failure,
                  waiter_name(waiter) + " got \"" + error.message() + "\" without a cause");
}

// A poll for any completion gives the oldest ones that no waiter wants by wr_id.
void Properties::take(std::span<const WrId> ids) {
    if (ids.empty()) run_.violated(property::once, "a poll gave neither a completion nor an error");
    for (const WrId id : ids) {
        if (!undelivered_.contains(id)) {
            run_.violated(property::once,
                          "completion " + std::to_string(id) + " was delivered twice");
        }
        if (reserved(id)) {
            run_.violated(property::fifo, "a waiter polls for completion " + std::to_string(id));
        }
        const auto oldest =
            std::ranges::find_if_not(undelivered_, [this](WrId older) { return reserved(older); });
        if (id != *oldest) {
            run_.violated(property::order, "completion " + std::to_string(id) + " before " +
                                               std::to_string(*oldest));
        }
        undelivered_.erase(id);
    }
}

bool Properties::reserved(WrId id) const {
    return std::ranges::any_of(
        waiters_, [id](const Waiter& waiter) { return waiter.waiting && waiter.wanted == id; });
}

bool Properties::waited_for(WrId id) const { return !line_.empty() || reserved(id); }

bool Properties::left_behind(WrId id) const { return waited_for(id) && !quiet_.contains(id); }

// --- the end ---

void Properties::closes() { closing_ = true; }

bool Properties::any_left_behind() const {
    return std::ranges::any_of(undelivered_, [this](WrId id) { return left_behind(id); });
}

void Properties::at_rest(bool cq_armed) const {
    if (closing_) return; // the remaining waiters are never resumed
    bool anyone = false;
    for (int waiter = 1; waiter <= static_cast<int>(waiters_.size()); ++waiter) {
        if (!at(waiter).waiting) continue;
        anyone = true;
        if (failed_) run_.violated(property::failure, waiter_name(waiter) + " still waits");
        if (at(waiter).cancelled) {
            run_.violated(property::cancel, waiter_name(waiter) + " still waits");
        }
    }
    for (const WrId id : undelivered_) {
        if (left_behind(id)) {
            run_.violated(property::wake, "completion " + std::to_string(id) +
                                              " has arrived, a waiter waits, and nothing runs");
        }
    }
    if (anyone && !cq_armed)
        run_.violated(property::armed, "the next completion would not wake it");
}

void Properties::drained(std::span<const WrId> ids) {
    if (!ids.empty()) take(ids);
}

void Properties::finished() const {
    if (!undelivered_.empty()) {
        run_.violated(property::once,
                      "completion " + std::to_string(*undelivered_.begin()) + " was lost");
    }
}

} // namespace asyncverbs::proof
