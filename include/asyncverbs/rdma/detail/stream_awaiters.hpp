// SPDX-License-Identifier: MIT
#pragma once

#include <coroutine>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/coro/awaitable.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/detail/stream_state.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// A call of Stream, which runs in steps: each goes as far as it can without waiting. The coroutine
// is resumed after the last one. May be moved until it is awaited.
class StreamAwaiter : CompletionWaiter, AwaitedByReference {
public:
    StreamAwaiter(StreamAwaiter&& other) noexcept
        : CompletionWaiter(&on_ready), state_(std::move(other.state_)),
          stop_(std::move(other.stop_)), busy_(other.busy_) {}

    /// Throws std::logic_error if another call of the same direction is running.
    bool await_ready() {
        if (*busy_) {
            const char* const what = busy_ == &state_->reading_ ? "read" : "written to";
            throw std::logic_error(std::string("asyncverbs::Stream: two ") + what +
                                   " at the same time");
        }
        *busy_ = running_ = true;
        state_->greet();
        step();
        return blocker_ == nullptr;
    }

    bool await_suspend(std::coroutine_handle<> handle) noexcept {
        coroutine = handle;
        *blocker_ = this;
        if (!stop_.stop_possible()) return true;
        return watched_stop_.emplace(static_cast<CompletionWaiter&>(*this), *state_->router_, stop_)
            .may_wait();
    }

protected:
    using Self = std::shared_ptr<StreamState>;

    // `busy` is the flag of the state for the direction.
    StreamAwaiter(Self state, bool StreamState::* busy, std::stop_token stop) noexcept
        : CompletionWaiter(&on_ready), state_(std::move(state)), stop_(std::move(stop)),
          busy_(&(*state_.*busy)) {}
    ~StreamAwaiter() { finish(); }

    // Sets `blocker_` if the call has to wait.
    virtual void step() noexcept = 0;

    void finish() noexcept {
        if (blocker_ != nullptr) *std::exchange(blocker_, nullptr) = nullptr;
        if (std::exchange(running_, false)) *busy_ = false;
    }

    bool stopped() const noexcept { return stop_.stop_requested(); }
    bool can_go_on() const noexcept { return !state_->ended_ && !state_->failure_ && !stopped(); }
    void wait_for(CompletionWaiter*& place) noexcept { blocker_ = &place; }

    // The call waits for sends or credits, or ends because of a failure or a stop.
    void wait_to_write() noexcept {
        if (!state_->failure_ && !stopped()) wait_for(state_->writer_);
    }

    // True if all data is sent, and another message can be. Otherwise as wait_to_write().
    bool all_data_sent() noexcept {
        state_->send_gathered();
        const bool sent = state_->gathered_ == 0 && state_->has_free_send() && !state_->failure_;
        if (!sent) wait_to_write();
        return sent;
    }

    [[noreturn]] void throw_reason(const char* what) const {
        state_->rethrow_failure();
        throw_error(std::errc::operation_canceled, what);
    }
    [[noreturn]] void throw_not_written(const char* call) const {
        if (!state_->ended_) throw_reason(call);
        throw_error(std::errc::broken_pipe, std::string(call) + " after shutdown_write()");
    }

    Self state_; // keeps the memory if the stream is destroyed meanwhile

private:
    static void on_ready(CompletionWaiter& waiter) {
        auto& self = static_cast<StreamAwaiter&>(waiter);
        *std::exchange(self.blocker_, nullptr) = nullptr;
        self.step();
        if (self.blocker_ != nullptr) {
            *self.blocker_ = &self;
        } else {
            self.coroutine.resume(); // destroys this
        }
    }

    std::stop_token stop_;
    bool* busy_;
    bool running_ = false;
    CompletionWaiter** blocker_ = nullptr;   // the pointer to the waiter of whatever this waits for
    std::optional<WaiterStop> watched_stop_; // while it waits
};

class [[nodiscard]] StreamRead final : public StreamAwaiter {
public:
    StreamRead(Self state, SpanCursor<std::byte> to, std::stop_token stop) noexcept
        : StreamAwaiter(std::move(state), &StreamState::reading_, std::move(stop)), to_(to) {}

    // In this order: data that has arrived, the end, the failure. A peer that has sent everything
    // may have closed the connection (I7: data counts also after a stop).
    std::size_t await_resume() {
        finish();
        if (taken_ > 0 || state_->peer_ended_ || to_.empty()) return taken_;
        throw_reason("Stream::read_some");
    }

private:
    void step() noexcept override {
        taken_ = state_->take(to_);
        const bool done = taken_ > 0 || state_->peer_ended_ || to_.empty();
        if (!done && !state_->failure_ && !stopped()) wait_for(state_->reader_);
    }

    SpanCursor<std::byte> to_;
    std::size_t taken_ = 0;
};

class [[nodiscard]] StreamWrite final : public StreamAwaiter {
public:
    StreamWrite(Self state, SpanCursor<const std::byte> from, std::stop_token stop) noexcept
        : StreamAwaiter(std::move(state), &StreamState::writing_, std::move(stop)), from_(from) {}

    void await_resume() {
        finish();
        state_->rethrow_failure();
        if (!from_.empty()) throw_not_written("Stream::write_all");
    }

private:
    void step() noexcept override {
        while (!from_.empty() && can_go_on()) {
            if (!state_->can_gather()) return wait_to_write();
            state_->gather(from_);
        }
    }

    SpanCursor<const std::byte> from_;
};

class [[nodiscard]] StreamWriteSome final : public StreamAwaiter {
public:
    StreamWriteSome(Self state, SpanCursor<const std::byte> from, std::stop_token stop) noexcept
        : StreamAwaiter(std::move(state), &StreamState::writing_, std::move(stop)), from_(from),
          nothing_(from.empty()) {}

    std::size_t await_resume() {
        finish();
        if (written_ == 0) {
            state_->rethrow_failure();
            if (!nothing_) throw_not_written("Stream::write_some");
        }
        return written_;
    }

private:
    void step() noexcept override {
        while (!from_.empty() && can_go_on() && state_->can_gather()) {
            written_ += state_->gather(from_);
        }
        if (written_ == 0 && !nothing_ && can_go_on()) wait_to_write();
    }

    SpanCursor<const std::byte> from_;
    const bool nothing_;
    std::size_t written_ = 0;
};

class [[nodiscard]] StreamEnd final : public StreamAwaiter {
public:
    StreamEnd(Self state, std::stop_token stop) noexcept
        : StreamAwaiter(std::move(state), &StreamState::writing_, std::move(stop)) {}

    void await_resume() {
        finish();
        if (!state_->ended_) throw_reason("Stream");
        if (sent_) state_->rethrow_failure();
    }

private:
    void step() noexcept override {
        if (state_->ended_ || !all_data_sent()) return;
        state_->ended_ = sent_ = true;
        state_->send(StreamKind::end);
    }

    bool sent_ = false;
};

class [[nodiscard]] StreamClose final : public StreamAwaiter {
public:
    StreamClose(Self state, std::stop_token stop) noexcept
        : StreamAwaiter(std::move(state), &StreamState::writing_, std::move(stop)) {}

    void await_resume() {
        finish();
        if (!state_->qp_) return;
        if (!all_sent_ && !state_->peer_gone_) throw_reason("Stream");
        state_->abandon();
    }

private:
    void step() noexcept override {
        if (!state_->qp_) return;
        const bool both_ended = state_->ended_ && state_->peer_ended_; // nothing is left to say
        if (!state_->parted_ && !both_ended) {
            if (!all_data_sent()) return;
            state_->parted_ = state_->ended_ = true;
            state_->send(StreamKind::goodbye);
        }
        all_sent_ = state_->sending_ == 0 && !state_->failure_;
        if (!all_sent_) wait_to_write();
    }

    bool all_sent_ = false;
};

} // namespace asyncverbs::detail
