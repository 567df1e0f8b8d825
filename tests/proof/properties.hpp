// SPDX-License-Identifier: MIT
//
// What must hold for a CQ in every schedule. It knows the device's steps, the calls of verbs and
// the results of the waiters, but nothing of the inside of AsyncCq. I1 … I12 are the invariants of
// the library; tests/README.md lists them.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "proof/configuration.hpp"
#include "proof/run.hpp"

namespace asyncverbs::proof {

namespace property {

inline constexpr std::string_view wait = "I1: a wait follows an arm and an empty poll";
inline constexpr std::string_view wake = "I3: no waiter waits for a completion that has arrived";
inline constexpr std::string_view armed = "I3: while there is a waiter, the CQ is armed";
inline constexpr std::string_view acks = "I4: each event read is acked once, to its own CQ";
inline constexpr std::string_view last_touch = "I4: the ack is the last touch of a CQ";
inline constexpr std::string_view failure =
    "I5: an error reaches all waiters, and no other error does";
inline constexpr std::string_view fifo = "I6: first come, first served";
inline constexpr std::string_view cancel = "I7: a cancelled waiter is resumed, with that error";
inline constexpr std::string_view cancel_first = "I7: a cancel is decided before the poll";
inline constexpr std::string_view once = "each completion is delivered exactly once";
inline constexpr std::string_view order = "completions are delivered in order";
inline constexpr std::string_view wr_id = "poll_wr_id gives the completion with that wr_id";
inline constexpr std::string_view arm_once = "an outstanding arm is not repeated";
inline constexpr std::string_view arm_empty = "the CQ is armed only after an empty poll";
inline constexpr std::string_view busy = "an empty CQ is polled for the whole busy poll";
inline constexpr std::string_view solicited = "an unsolicited completion ends no wait";
inline constexpr std::string_view closed =
    "I8: no waiter is resumed after its AsyncCq was destroyed";
inline constexpr std::string_view rest = "the loop comes to rest";
inline constexpr std::string_view verbs = "verbs are called as their manual pages require";
inline constexpr std::string_view deregistered = "I12: an fd leaves its loop before it is closed";
inline constexpr std::string_view leak = "nothing is leaked";

} // namespace property

using WrId = std::uint64_t;

// The number of extra polls of an empty CQ before it is armed, in the setting `busy`.
inline constexpr unsigned busy_polls = 2;

class Properties {
public:
    Properties(const Configuration& configuration, const Run& run);

    // --- the device ---

    // A `quiet` completion ends no wait.
    void arrived(WrId id, bool quiet);

    // --- verbs that succeeded, on this CQ ---

    void polled(int count);
    void about_to_arm() const;
    void armed();
    void event_read();
    void acked(bool all);
    // Called before every verb but the one that destroys the CQ.
    void touched() const;
    void failed() { failed_ = failure_is_known_ = true; }
    // A CQ on a shared channel gets the error at its next wait.
    void channel_failed() { failed_ = true; }

    // --- the notifier ---

    void waits() const;
    void timed_out() { arm_outstanding_ = false; }

    // --- the waiters ---

    // `wanted`: the wr_id of the only completion that it waits for; 0: any.
    void begins(int waiter, WrId wanted);
    void cancelled(int waiter);
    void ends(int waiter, std::span<const WrId> delivered, const std::error_code& error);
    void destroyed(int waiter) { leave(waiter); }
    bool waiting(int waiter) const { return at(waiter).waiting; }

    // --- the end ---

    // The AsyncCq is being destroyed.
    void closes();
    // Nothing more will happen without another step: no waiter may be left behind.
    void at_rest(bool cq_armed) const;
    // Whether a waiter waits for a completion that has arrived: its event may have been dropped.
    bool any_left_behind() const;
    // These were polled at the end, without a waiter.
    void drained(std::span<const WrId> ids);
    void finished() const;

private:
    struct Waiter {
        bool waiting = false;
        WrId wanted = 0;
        bool cancelled = false;
        bool cancelled_before = false; // when the poll began
        bool failed_before = false;
    };

    Waiter& at(int waiter) { return waiters_[static_cast<std::size_t>(waiter) - 1]; }
    const Waiter& at(int waiter) const { return waiters_[static_cast<std::size_t>(waiter) - 1]; }
    bool waited_for(WrId id) const;
    bool reserved(WrId id) const;
    void leave(int waiter);
    void check_order(int waiter) const;
    void check_error(int waiter, const std::error_code& error);
    void take(std::span<const WrId> ids);

    bool left_behind(WrId id) const;

    const Configuration& configuration_;
    const Run& run_;
    std::set<WrId> undelivered_; // arrived, not delivered yet
    std::set<WrId> quiet_;       // arrived, but end no wait
    unsigned wakes_owed_ = 0;    // arrived, and may end a wait
    std::vector<Waiter> waiters_;
    std::vector<int> line_; // the waiters for any completion, in order of arrival
    bool arm_outstanding_ = false;
    bool last_poll_empty_ = false;
    bool empty_since_arm_ = false;
    unsigned empty_polls_ = 0; // in a row, since the last arm
    bool failed_ = false;
    bool failure_is_known_ = false; // to this CQ
    bool closing_ = false;
    bool released_ = false; // the last ack was seen while closing
};

std::string waiter_name(int waiter);

} // namespace asyncverbs::proof
