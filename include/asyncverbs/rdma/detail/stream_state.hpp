// SPDX-License-Identifier: MIT
// A place in a sequence of bytes that is one span, or several that follow one another.
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/coroutine.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs {

/// The memory of one end, registered when it is made: twice `buffers` of `buffer_size`, and a
/// little. The ends may differ: each is told what the other can take.
struct StreamOptions {
    std::size_t buffer_size = 16384; ///< bytes of the stream in one message, at most
    std::uint32_t buffers = 16;      ///< messages on their way, or arrived and not read; each way
};

} // namespace asyncverbs

namespace asyncverbs::detail {

template <class Byte>
class SpanCursor {
public:
    explicit SpanCursor(std::span<Byte> one) noexcept : current_(one) {}
    explicit SpanCursor(std::span<const std::span<Byte>> several) noexcept : rest_(several) {
        skip_empty();
    }

    bool empty() const noexcept { return current_.empty(); }

    /// The next bytes, `most` of them at most; fewer where a span ends.
    std::span<Byte> take(std::size_t most) noexcept {
        const std::span<Byte> taken =
            current_.first(most < current_.size() ? most : current_.size());
        current_ = current_.subspan(taken.size());
        skip_empty();
        return taken;
    }

private:
    void skip_empty() noexcept {
        while (current_.empty() && !rest_.empty()) {
            current_ = rest_.front();
            rest_ = rest_.subspan(1);
        }
    }

    std::span<Byte> current_; // empty only at the end
    std::span<const std::span<Byte>> rest_;
};

// What the two ends of a stream say to each other. What comes from the peer is believed only once
// it was checked here, and, where it depends on what came before, in StreamState::accept().
//
//     byte 0     1    2         4
//     ┌────────┬───┬─────────┬──────────────────────────────────────────────────────┐
//     │ kind   │ 0 │ credits │ data: bytes of the stream                            │
//     └────────┴───┴─────────┤ hello: "avs1", buffers, bytes that each takes        │
//                            └──────────────────────────────────────────────────────┘
// Numbers are big-endian. In the message and not in the immediate, which iWARP does not have.

enum class StreamKind : std::uint8_t {
    hello = 1, // the first of each end
    data,
    credits, // nothing but credits, which any other but hello may carry, too
    end,     // no more data will come
    goodbye, // nor will anything be read
};

struct StreamMessage {
    StreamKind kind;
    std::uint32_t credits; // so many more data messages may be sent
    std::span<const std::byte> payload;
};

// Of the end that says it.
struct StreamHello {
    std::uint32_t buffers;     // for data, that are posted
    std::uint32_t buffer_size; // bytes of payload that each takes
};

constexpr std::size_t stream_header_size = 4;
constexpr std::size_t stream_hello_size = 12; // of its payload
constexpr std::uint32_t max_stream_buffers = 0xffff;
constexpr std::array<char, 4> stream_magic{'a', 'v', 's', '1'};

[[noreturn]] inline void throw_protocol_error(const std::string& what) {
    throw_error(std::errc::protocol_error, "the peer of a stream sent " + what);
}

inline void put_big_endian(std::byte* to, std::size_t bytes, std::uint32_t value) noexcept {
    for (std::size_t i = bytes; i-- > 0; value >>= 8) to[i] = static_cast<std::byte>(value);
}

inline std::uint32_t get_big_endian(const std::byte* from, std::size_t bytes) noexcept {
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) value = value << 8 | static_cast<std::uint8_t>(from[i]);
    return value;
}

inline void write_header(std::span<std::byte> message, StreamKind kind,
                         std::uint32_t credits) noexcept {
    message[0] = static_cast<std::byte>(kind);
    message[1] = std::byte{0};
    put_big_endian(message.data() + 2, 2, credits);
}

inline void write_hello(std::span<std::byte> payload, const StreamHello& hello) noexcept {
    std::memcpy(payload.data(), stream_magic.data(), stream_magic.size());
    put_big_endian(payload.data() + 4, 4, hello.buffers);
    put_big_endian(payload.data() + 8, 4, hello.buffer_size);
}

// Throws std::system_error (protocol_error) for what no end says.
inline StreamMessage read_message(std::span<const std::byte> bytes) {
    if (bytes.size() < stream_header_size) {
        throw_protocol_error("a message of " + std::to_string(bytes.size()) + " bytes");
    }
    const auto kind = static_cast<unsigned>(bytes[0]);
    const StreamMessage message{static_cast<StreamKind>(bytes[0]),
                                get_big_endian(bytes.data() + 2, 2),
                                bytes.subspan(stream_header_size)};
    if (kind < static_cast<unsigned>(StreamKind::hello) ||
        kind > static_cast<unsigned>(StreamKind::goodbye) || bytes[1] != std::byte{0}) {
        throw_protocol_error("a message of unknown kind " + std::to_string(kind));
    }
    const bool has_payload = message.kind == StreamKind::data || message.kind == StreamKind::hello;
    if (has_payload == message.payload.empty()) {
        throw_protocol_error("a message of kind " + std::to_string(kind) + " with " +
                             std::to_string(message.payload.size()) + " bytes");
    }
    return message;
}

// The same for the payload of a hello.
inline StreamHello read_hello(std::span<const std::byte> payload) {
    if (payload.size() != stream_hello_size ||
        std::memcmp(payload.data(), stream_magic.data(), stream_magic.size()) != 0) {
        throw_protocol_error("no hello of this version");
    }
    const StreamHello hello{get_big_endian(payload.data() + 4, 4),
                            get_big_endian(payload.data() + 8, 4)};
    if (hello.buffers == 0 || hello.buffers > max_stream_buffers || hello.buffer_size == 0) {
        throw_protocol_error("a hello of " + std::to_string(hello.buffers) + " buffers of " +
                             std::to_string(hello.buffer_size) + " bytes");
    }
    return hello;
}

// A coroutine that a stream runs for itself, as long as it lives. It starts at once, and lets no
// exception escape.

class StreamLoop {
public:
    struct promise_type {
        StreamLoop get_return_object() noexcept { return StreamLoop(*this); }
        std::suspend_never initial_suspend() const noexcept { return {}; }
        std::suspend_always final_suspend() const noexcept { return {}; }
        void return_void() const noexcept {}
        [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };

    StreamLoop() noexcept = default;

private:
    explicit StreamLoop(promise_type& promise) noexcept : coroutine_(promise) {}

    UniqueCoroutineHandle<promise_type> coroutine_;
};

// The reader or the writer of a stream, while it waits for what the peer has to say.

// Awaited: until the router resumes what `place` points to, or `stop` is requested. A wake is a
// hint to look again. Pinned.
class StreamWait : Resumable {
public:
    StreamWait(Resumable*& place, RouterState& router, std::stop_token stop) noexcept
        : place_(place), router_(router), stop_(std::move(stop)) {}
    StreamWait(const StreamWait&) = delete;
    StreamWait& operator=(const StreamWait&) = delete;
    ~StreamWait() { place_ = nullptr; }

    bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> handle) {
        coroutine = handle;
        place_ = this;
        if (!stop_.stop_possible()) return true;
        on_stop_.emplace(static_cast<Resumable&>(*this), router_, stop_);
        return on_stop_->may_wait();
    }
    void await_resume() const noexcept {}

private:
    Resumable*& place_;
    RouterState& router_;
    std::stop_token stop_;
    std::optional<OnStop> on_stop_; // once it waits
};

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

class StreamState {
public:
    static constexpr std::uint32_t extra_receives = 4;

    StreamState(AsyncQp qp, const ProtectionDomain& domain, const StreamOptions& options);
    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    AsyncQp& qp() {
        if (!qp_) throw_error(std::errc::invalid_argument, "a stream that was closed");
        return *qp_;
    }

    // `self` keeps the memory, whoever destroys the stream meanwhile.
    using Self = std::shared_ptr<StreamState>;
    using Target = SpanCursor<std::byte>;
    using Source = SpanCursor<const std::byte>;
    static Task<std::size_t> read(Self self, Target to, std::stop_token stop);
    static Task<> write(Self self, Source from, std::stop_token stop);
    static Task<> end_data(Self self, std::stop_token stop);
    static Task<> close(Self self, std::stop_token stop);

    // Nothing moves any more, and whoever waits is resumed.
    void abandon() noexcept;

private:
    struct Receive : ListNode {
        Operation operation;
        Slice buffer;
        std::span<const std::byte> unread; // of a message that has arrived
    };
    struct Send {
        Operation operation;
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
    void fail_if_failed(Operation& done) noexcept;
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
    const std::shared_ptr<RouterState> router_;
    std::optional<AsyncQp> qp_; // until it was closed
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

inline StreamState::StreamState(AsyncQp qp, const ProtectionDomain& domain,
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

inline MemoryRegion StreamState::allocate(const ProtectionDomain& domain,
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

inline void StreamState::fail(std::exception_ptr why) noexcept {
    if (failure_) return;
    failure_ = std::move(why);
    std::error_code ignored;
    if (qp_) qp_->queue_pair().to_error(ignored); // what is under way ends
    wake(reader_);
    wake(writer_);
}

inline void StreamState::fail_if_failed(Operation& done) noexcept {
    try {
        (void)done.operator co_await().await_resume();
    } catch (...) {
        fail(std::current_exception());
    }
}

inline void StreamState::abandon() noexcept {
    fail(std::make_exception_ptr(*router_->queue_failure()));
    qp_.reset();
}

} // namespace asyncverbs::detail
