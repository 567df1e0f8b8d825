// SPDX-License-Identifier: MIT
// What a stream and the coroutines that read and write it share. It lives as long as any of them.
//
//     write ──► sends_ ══► the peer ══► posted_ ──► arrived_ ──► read
//                 ▲                                                │
//             credits_ ◄── posted_ ◄══ the peer ◄══ owed_ ◄────────┘
//
// A credit stands for a receive that the peer has posted for data: no message is sent that would
// not find one. Two coroutines of its own keep it going whoever waits or does not: receive_all()
// takes what arrives, return_credits() tells the peer what was read.
//
// What is not data takes no credit, and has receives of its own, so that two ends that are both out
// of credits are not stuck. There are never more of these on their way than `extra_receives`: an
// end says hello once, before all else, and end and goodbye once each; and it returns no less than
// half of the peer's credits at a time, so of three such messages the peer must have seen the
// first.
#pragma once

#include <infiniband/verbs.h>

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/core/detail/intrusive_list.hpp>
#include <asyncverbs/core/detail/maybe.hpp>
#include <asyncverbs/core/task.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/span_cursor.hpp>
#include <asyncverbs/rdma/detail/stream_loop.hpp>
#include <asyncverbs/rdma/detail/stream_message.hpp>
#include <asyncverbs/rdma/detail/stream_wait.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/rdma/stream_options.hpp>
#include <asyncverbs/verbs/detail/memory.hpp>
#include <asyncverbs/verbs/detail/on_use.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory_region.hpp>
#include <asyncverbs/verbs/protection_domain.hpp>

namespace asyncverbs::detail {

template <class Use>
class StreamState {
public:
    static constexpr std::uint32_t extra_receives = 4;

    StreamState(BasicAsyncQp<Use> qp, const ProtectionDomain& domain, const StreamOptions& options);
    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    BasicAsyncQp<Use>& qp() {
        if (!qp_) throw_error(std::errc::invalid_argument, "a stream that was closed");
        return *qp_;
    }

    // `self` keeps the memory, whoever destroys the stream meanwhile.
    using Self = std::shared_ptr<StreamState>;
    using Target = SpanCursor<Used<std::byte, Use>>;
    using Source = SpanCursor<Used<const std::byte, Use>>;
    static Task<std::size_t> read(Self self, Target to, std::stop_token stop);
    static Task<> write(Self self, Source from, std::stop_token stop);
    static Task<> end_data(Self self, std::stop_token stop);
    static Task<> close(Self self, std::stop_token stop);

    // Nothing moves any more, and whoever waits is resumed.
    void abandon() noexcept;

private:
    struct Receive : ListNode {
        BasicOperation<Use> operation;
        Slice buffer;
        std::span<const std::byte> unread; // of a message that has arrived
    };
    struct Send {
        BasicOperation<Use> operation;
        Slice buffer;
        bool posted = false;
    };

    // One reader and one writer at a time.
    class Turn {
    public:
        Turn(bool& taken, const char* what) : taken_(taken) {
            if (taken) throw std::logic_error(std::string("asyncverbs::Stream: two ") + what);
            taken = true;
        }
        Turn(const Turn&) = delete;
        Turn& operator=(const Turn&) = delete;
        ~Turn() { taken_ = false; }

    private:
        bool& taken_;
    };

    struct CreditsDue {
        StreamState& self;
        bool await_ready() const noexcept { return self.credits_are_due(); }
        void await_suspend(std::coroutine_handle<> handle) const noexcept {
            self.credit_returner_ = handle;
        }
        void await_resume() const noexcept {}
    };

    // --- from the peer ---

    static StreamLoop receive_all(StreamState& self);
    void accept(Receive& receive, std::size_t bytes);
    void accept_data(Receive& receive, std::span<const std::byte> payload);
    void accept_hello(const StreamHello& hello);
    void accept_credits(std::uint32_t credits);
    void post(Receive& receive);
    std::size_t take(Target to);
    void release(Receive& receive);

    // --- to the peer ---

    static StreamLoop return_credits(StreamState& self);
    bool credits_are_due() const noexcept {
        return owed_ >= (options_.buffers + 1) / 2 && !peer_ended_;
    }
    std::uint32_t returned_credits() noexcept {
        unreturned_ -= owed_;
        return std::exchange(owed_, 0);
    }
    void greet();
    void send(StreamKind kind, std::size_t payload = 0);
    void send_data(Source& from);
    void post(Send& send, std::size_t bytes);
    bool is_free(Send& send);
    static Task<> until_free(StreamState& self, Send& send, std::stop_token stop);
    static Task<> part(StreamState& self, std::stop_token stop);

    // --- ends ---

    void fail(std::exception_ptr why) noexcept;
    void fail_if_failed(BasicOperation<Use>& done) noexcept;
    void rethrow_failure() const {
        if (failure_) std::rethrow_exception(failure_);
    }
    static void throw_if_stopped(const std::stop_token& stop, const char* what) {
        if (stop.stop_requested()) throw_error(std::errc::operation_canceled, what);
    }
    void wake(Resumable* waiter) noexcept {
        if (waiter == nullptr) return;
        router_->make_ready(*waiter);
        router_->wake();
    }

    static MemoryRegion allocate(const ProtectionDomain& domain, const StreamOptions& options);
    static std::size_t buffer_bytes(const StreamOptions& options) noexcept {
        const bool fits_hello = options.buffer_size > stream_hello_size;
        return stream_header_size + (fits_hello ? options.buffer_size : stream_hello_size);
    }
    static std::size_t stride(const StreamOptions& options) noexcept {
        constexpr std::size_t line = 64; // no two buffers share one
        return (buffer_bytes(options) + line - 1) / line * line;
    }

    const StreamOptions options_;
    const std::shared_ptr<RouterState<Use>> router_;
    Maybe<BasicAsyncQp<Use>> qp_; // until it was closed
    MemoryRegion region_;
    std::exception_ptr failure_;

    std::vector<Receive> receives_;
    IntrusiveList<Receive> posted_;  // in the order in which they will be used
    IntrusiveList<Receive> arrived_; // with data that was not read
    std::uint32_t unreturned_ = 0;   // credits that the peer has used and not got back
    std::uint32_t owed_ = 0;         // of these, posted again
    bool greeted_ = false;           // by the peer
    bool peer_ended_ = false;        // its data
    bool peer_gone_ = false;
    bool reading_ = false;
    Resumable* reader_ = nullptr; // while it waits

    std::vector<Send> sends_; // a ring
    std::size_t next_send_ = 0;
    std::uint32_t credits_ = 0;
    std::uint32_t peer_buffers_ = 0;
    std::size_t message_size_ = 0; // of data, what both ends can take
    bool has_greeted_ = false;     // the peer
    bool ended_ = false;
    bool parted_ = false;
    bool writing_ = false;
    Resumable* writer_ = nullptr; // while it waits for credits

    Send credit_return_;
    std::coroutine_handle<> credit_returner_; // while nothing is due

    StreamLoop receiver_;
    StreamLoop returner_;
};

template <class Use>
inline StreamState<Use>::StreamState(BasicAsyncQp<Use> qp, const ProtectionDomain& domain,
                                     const StreamOptions& options)
    : options_(options), router_(qp.state_->router), region_(allocate(domain, options)),
      receives_(options.buffers + extra_receives), sends_(options.buffers) {
    qp_.emplace(std::move(qp));
    const QueuePairOptions& queues = qp_->queue_pair().options();
    if (queues.type != IBV_QPT_RC || queues.max_recv_wr < receives_.size()) {
        throw_error(std::errc::invalid_argument, "a stream of " + std::to_string(options.buffers) +
                                                     " buffers takes an RC queue pair with " +
                                                     std::to_string(receives_.size()) +
                                                     " receives of its own");
    }
    std::size_t offset = 0;
    const auto next_buffer = [&] {
        return region_.slice(std::exchange(offset, offset + stride(options)),
                             buffer_bytes(options));
    };
    for (Receive& receive : receives_) {
        receive.buffer = next_buffer();
        post(receive);
    }
    rethrow_failure();
    for (Send& send : sends_) send.buffer = next_buffer();
    credit_return_.buffer = next_buffer();
    receiver_ = receive_all(*this);
    returner_ = return_credits(*this);
}

template <class Use>
inline MemoryRegion StreamState<Use>::allocate(const ProtectionDomain& domain,
                                               const StreamOptions& options) {
    constexpr std::size_t most = std::size_t{1} << 30;
    check_range("buffers", options.buffers, 1, max_stream_buffers, "a stream");
    check_range(
        "buffer_size",
        static_cast<long long>(options.buffer_size <= most ? options.buffer_size : most + 1), 1,
        most, "a stream");
    const std::size_t count = 2 * std::size_t{options.buffers} + extra_receives + 1;
    return MemoryRegion::allocate(domain, count * stride(options));
}

template <class Use>
inline void StreamState<Use>::fail(std::exception_ptr why) noexcept {
    if (failure_) return;
    failure_ = std::move(why);
    std::error_code ignored;
    if (qp_) qp_->queue_pair().to_error(ignored); // what is under way ends
    wake(reader_);
    wake(writer_);
}

template <class Use>
inline void StreamState<Use>::fail_if_failed(BasicOperation<Use>& done) noexcept {
    try {
        (void)done.operator co_await().await_resume();
    } catch (...) {
        fail(std::current_exception());
    }
}

template <class Use>
inline void StreamState<Use>::abandon() noexcept {
    fail(std::make_exception_ptr(*router_->queue_failure()));
    qp_.reset();
}

} // namespace asyncverbs::detail
