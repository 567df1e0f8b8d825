// SPDX-License-Identifier: MIT
#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/detail/router_state.hpp>
#include <asyncverbs/rdma/operation.hpp>
#include <asyncverbs/verbs/error.hpp>
#include <asyncverbs/verbs/memory.hpp>

namespace asyncverbs::detail {

// --- the messages between the two ends ---
//
// read_message() and read_hello() check the messages of the peer; StreamState::accept() checks what
// depends on earlier messages.
//
//     byte 0     1    2         4
//     ┌────────┬───┬─────────┬──────────────────────────────────────────────────────┐
//     │ kind   │ 0 │ credits │ data: bytes of the stream                            │
//     └────────┴───┴─────────┤ hello: "avs1", buffers, bytes that each takes        │
//                            └──────────────────────────────────────────────────────┘
// Numbers are big-endian. The header is part of the message because iWARP has no immediate data.

enum class StreamKind : std::uint8_t {
    hello = 1, // the first message of each end
    data,
    credits, // only credits; all messages but hello may carry some
    end,     // no more data will be sent
    goodbye, // nor will anything be read
};

struct StreamMessage {
    StreamKind kind;
    std::uint32_t credits; // the number of data messages that may be sent in addition
    std::span<const std::byte> payload;
};

// The receives of the end that sends it.
struct StreamHello {
    std::uint32_t buffers;     // posted for data
    std::uint32_t buffer_size; // bytes of payload that each takes
};

constexpr std::size_t stream_header_size = 4;
constexpr std::size_t stream_hello_size = 12; // of the payload
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

inline void write_header(std::byte* message, StreamKind kind, std::uint32_t credits) noexcept {
    message[0] = static_cast<std::byte>(kind);
    message[1] = std::byte{0};
    put_big_endian(message + 2, 2, credits);
}

inline void write_hello(std::byte* payload, const StreamHello& hello) noexcept {
    std::memcpy(payload, stream_magic.data(), stream_magic.size());
    put_big_endian(payload + 4, 4, hello.buffers);
    put_big_endian(payload + 8, 4, hello.buffer_size);
}

// Throws std::system_error (protocol_error) for a message that no stream sends.
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

// Throws as read_message().
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

// --- the stream ---

// A position in a sequence of bytes: one span, or several that follow one another.
template <class Byte>
class SpanCursor {
public:
    explicit SpanCursor(std::span<Byte> one) noexcept : current_(one) {}
    explicit SpanCursor(std::span<const std::span<Byte>> several) noexcept : rest_(several) {
        skip_empty();
    }

    bool empty() const noexcept { return current_.empty(); }

    /// The next bytes, at most `most`; fewer at the end of a span.
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

// State of a Stream, shared with the calls that read and write it.
//
//     write ──► sends_ ══► the peer ══► posted_ ──► arrived_ ──► read
//                 ▲                                                │
//             credits_ ◄── posted_ ◄══ the peer ◄══ owed_ ◄────────┘
//
// A credit stands for a receive that the peer has posted for data: no message is sent that would
// not find one. Completions keep the stream going, whether a call waits or not: receive() takes the
// messages that arrive, complete_sends() sends what was gathered meanwhile, return_credits() tells
// the peer what was read.
//
// Small writes are gathered, as TCP does (Nagle's algorithm): while a message is in flight, what is
// written stays in the next send buffer until that is full, or until no message is in flight.
//
// Messages other than data take no credit and have receives of their own; so two ends that are both
// out of credits do not deadlock. At most `extra_receives` of these messages are on their way: an
// end sends hello once, before anything else, and end and goodbye once each; and it returns at
// least half of the peer's credits at a time, so of three such messages the peer must have received
// the first.
class StreamState {
public:
    static constexpr std::uint32_t extra_receives = 4;

    StreamState(AsyncQp qp, const ProtectionDomain& domain, std::size_t buffer_size,
                std::uint32_t buffers);
    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    AsyncQp& qp() {
        if (!qp_) throw_error(std::errc::invalid_argument, "a stream that was closed");
        return *qp_;
    }

    // Fails all calls with operation_canceled and destroys the queue pair.
    void abandon() noexcept {
        try {
            Failure::canceled("the stream was destroyed").raise();
        } catch (...) { // or std::bad_alloc
            fail(std::current_exception());
        }
        qp_.reset();
    }

private:
    friend struct KeepAlive;
    friend class StreamAwaiter;
    friend class StreamRead;
    friend class StreamWrite;
    friend class StreamWriteSome;
    friend class StreamEnd;
    friend class StreamClose;

    // Operations are posted again in place: to assign a new one costs more than to post it.
    struct Receive : ListNode {
        Operation operation;
        Slice buffer;
        std::span<const std::byte> unread; // of a message that has arrived
    };
    struct Send {
        Operation operation;
        Slice message; // the length is that of the last one
    };

    // Runs a function of the stream when an operation completes.
    template <void (StreamState::*function)() noexcept>
    struct CompletionCallback final : CompletionWaiter {
        explicit CompletionCallback(StreamState& self) noexcept
            : CompletionWaiter(&run), state(self) {}
        static void run(CompletionWaiter& waiter) {
            (static_cast<CompletionCallback&>(waiter).state.*function)();
        }
        StreamState& state;
    };

    // --- from the peer ---

    void receive() noexcept {
        const auto done = [](const Receive& receive) { return receive.operation.done(); };
        try {
            // Receives complete in order. If one is done before the first, the device rejected it.
            Receive* next = posted_.find_if(done);
            // Also after a failure: messages that arrived before it are still to be read.
            while (next != nullptr) {
                const Completion completion = next->operation.result(nullptr);
                next->unlink();
                accept(*next, completion.bytes());
                next = !posted_.empty() && done(posted_.front()) ? &posted_.front() : nullptr;
            }
        } catch (...) {
            fail(std::current_exception());
        }
    }

    void accept(Receive& receive, std::size_t bytes) {
        const StreamMessage message = read_message(receive.buffer.bytes().first(bytes));
        if ((message.kind == StreamKind::hello) == greeted_) {
            throw_protocol_error(greeted_ ? "a second hello" : "something else before its hello");
        }
        const bool ends = message.kind == StreamKind::data || message.kind == StreamKind::end;
        if (peer_ended_ && ends) throw_protocol_error("something else after its end");
        switch (message.kind) {
        case StreamKind::data:
            accept_data(receive, message.payload);
            break;
        case StreamKind::hello:
            accept_hello(read_hello(message.payload));
            break;
        case StreamKind::credits:
            break;
        case StreamKind::end:
            peer_ended_ = true;
            wake(reader_);
            break;
        case StreamKind::goodbye:
            peer_ended_ = peer_gone_ = true;
            break;
        }
        // Before the credits of the message are used; see extra_receives.
        if (message.kind != StreamKind::data && !failure_) post(receive);
        accept_credits(message.credits);
        if (peer_gone_) throw_error(std::errc::broken_pipe, "the peer has closed the stream");
    }

    void accept_data(Receive& receive, std::span<const std::byte> payload) {
        if (unreturned_ == buffers_) throw_protocol_error("more data than it had credits for");
        if (payload.size() > buffer_size_) throw_protocol_error("more data than fits a buffer");
        ++unreturned_;
        receive.unread = payload;
        arrived_.push_back(receive);
        wake(reader_);
    }

    void accept_hello(const StreamHello& hello) {
        greeted_ = true;
        peer_buffers_ = credits_ = hello.buffers;
        message_size_ = buffer_size_ < hello.buffer_size ? buffer_size_ : hello.buffer_size;
        wake(writer_);
    }

    void accept_credits(std::uint32_t credits) {
        if (credits > peer_buffers_ - credits_) throw_protocol_error("more credits than it owed");
        if (credits == 0) return;
        credits_ += credits;
        flush();
        wake(writer_);
    }

    void post(Receive& receive) noexcept {
        posted_.push_back(receive);
        post(qp_->state_->receives, receive.operation, Slices(receive.buffer));
    }

    std::size_t take(SpanCursor<std::byte> to) noexcept {
        std::size_t taken = 0;
        while (!to.empty() && !arrived_.empty()) {
            Receive& first = arrived_.front();
            const auto chunk = to.take(first.unread.size());
            std::memcpy(chunk.data(), first.unread.data(), chunk.size());
            first.unread = first.unread.subspan(chunk.size());
            taken += chunk.size();
            if (!first.unread.empty()) continue;
            first.unlink();
            if (failure_) continue;
            post(first);
            ++owed_;
            return_credits();
        }
        return taken;
    }

    // --- to the peer ---

    // The first message: no other message occupies its buffer.
    void greet() noexcept {
        if (has_greeted_ || failure_) return;
        has_greeted_ = true;
        write_hello(payload_of(sends_.front()),
                    {buffers_, static_cast<std::uint32_t>(buffer_size_)});
        send(StreamKind::hello, stream_hello_size);
    }

    bool has_free_send() const noexcept { return sending_ < sends_.size(); }
    bool can_gather() const noexcept { return has_free_send() && gathered_ < message_size_; }

    // Copies as much as fits into the next message. Returns the number of bytes.
    std::size_t gather(SpanCursor<const std::byte>& from) noexcept {
        std::byte* const to = payload_of(sends_[next_send_]);
        std::size_t copied = 0;
        while (!from.empty() && gathered_ < message_size_) {
            const auto chunk = from.take(message_size_ - gathered_);
            std::memcpy(to + gathered_, chunk.data(), chunk.size());
            gathered_ += chunk.size();
            copied += chunk.size();
        }
        flush();
        return copied;
    }

    // Sends what was gathered, if it fills a message or no message is in flight.
    void flush() noexcept {
        if (gathered_ == message_size_ || sending_ == 0) send_gathered();
    }

    void send_gathered() noexcept {
        if (gathered_ == 0 || credits_ == 0 || failure_) return;
        --credits_;
        send(StreamKind::data, std::exchange(gathered_, 0));
    }

    // The payload is in the buffer already.
    void send(StreamKind kind, std::size_t payload = 0) noexcept {
        Send& next = sends_[next_send_];
        next_send_ = after(next_send_);
        ++sending_;
        post(next, kind, payload);
    }

    void post(Send& send, StreamKind kind, std::size_t payload = 0) noexcept {
        write_header(send.message.address, kind, returned_credits());
        send.message.length = stream_header_size + payload;
        post(qp_->state_->sends, send.operation, SendView::send(send.message));
    }

    // Sends complete in order.
    void complete_sends() noexcept {
        while (sending_ > 0 && sends_[oldest_send_].operation.done()) {
            Send& oldest = sends_[oldest_send_];
            oldest_send_ = after(oldest_send_);
            --sending_;
            fail_if_failed(oldest.operation);
        }
        flush();
        wake(writer_);
    }

    static std::byte* payload_of(const Send& send) noexcept {
        return send.message.address + stream_header_size;
    }
    std::size_t after(std::size_t send) const noexcept {
        return send + 1 == sends_.size() ? 0 : send + 1;
    }

    // Sends a message with the credits that are owed, if they are at least half of all and the
    // previous such message has completed.
    void return_credits() noexcept {
        const bool due = owed_ >= (buffers_ + 1) / 2 && !peer_ended_;
        if (!due || returning_credits_ || failure_) return;
        returning_credits_ = true;
        post(credit_return_, StreamKind::credits);
    }

    void complete_credit_return() noexcept {
        returning_credits_ = false;
        fail_if_failed(credit_return_.operation);
        return_credits();
    }

    std::uint32_t returned_credits() noexcept {
        unreturned_ -= owed_;
        return std::exchange(owed_, 0);
    }

    // --- both ---

    template <class Request>
    void post(WorkQueue& queue, Operation& operation, const Request& request) noexcept {
        operation.completion_.reset();
        try {
            queue.submit(operation, request);
        } catch (...) {
            fail(std::current_exception());
        }
        if (operation.done()) fail_if_failed(operation);
    }

    // --- failures ---

    void fail(std::exception_ptr why) noexcept {
        if (failure_) return;
        failure_ = std::move(why);
        std::error_code ignored;
        if (qp_) qp_->queue_pair().to_error(ignored); // flushes pending operations
        wake(reader_);
        wake(writer_);
    }

    void fail_if_failed(const Operation& done) noexcept {
        if (failure_) return;
        try {
            (void)done.result(nullptr);
        } catch (...) {
            fail(std::current_exception());
        }
    }

    void rethrow_failure() const {
        if (failure_) std::rethrow_exception(failure_);
    }
    void wake(CompletionWaiter* waiter) noexcept {
        if (waiter == nullptr) return;
        router_->make_ready(*waiter);
        router_->wake();
    }

    MemoryRegion allocate(const ProtectionDomain& domain) const {
        constexpr std::size_t most = std::size_t{1} << 30;
        check_range("buffers", buffers_, 1, max_stream_buffers, "a stream");
        check_range("buffer_size",
                    static_cast<long long>(buffer_size_ <= most ? buffer_size_ : most + 1), 1, most,
                    "a stream");
        const std::size_t count = 2 * std::size_t{buffers_} + extra_receives;
        return MemoryRegion::allocate(domain, count * stride() + stream_header_size);
    }

    std::size_t buffer_bytes() const noexcept { // a hello has to fit, too
        const bool fits_hello = buffer_size_ > stream_hello_size;
        return stream_header_size + (fits_hello ? buffer_size_ : stream_hello_size);
    }
    std::size_t stride() const noexcept {
        constexpr std::size_t line = 64; // no two buffers share one
        return (buffer_bytes() + line - 1) / line * line;
    }

    const std::size_t buffer_size_;
    const std::uint32_t buffers_;
    const std::shared_ptr<RouterState> router_;
    std::optional<AsyncQp> qp_; // until it is closed
    MemoryRegion region_;
    std::exception_ptr failure_;

    std::vector<Receive> receives_;
    IntrusiveList<Receive> posted_;  // in the order in which they will be used
    IntrusiveList<Receive> arrived_; // with data that was not read
    std::uint32_t unreturned_ = 0;   // credits that the peer has used and not got back
    std::uint32_t owed_ = 0;         // of these, receives that are posted again
    bool greeted_ = false;           // by the peer
    bool peer_ended_ = false;        // its data
    bool peer_gone_ = false;
    bool reading_ = false;
    CompletionWaiter* reader_ = nullptr; // while it waits

    std::vector<Send> sends_; // a ring
    std::size_t next_send_ = 0;
    std::size_t oldest_send_ = 0; // in flight
    std::size_t sending_ = 0;     // the number in flight
    std::size_t gathered_ = 0;    // bytes of data in the buffer of the next one
    std::uint32_t credits_ = 0;
    std::uint32_t peer_buffers_ = 0;
    std::size_t message_size_ = 0; // of data, the most that both ends can take
    bool has_greeted_ = false;     // the peer
    bool ended_ = false;
    bool parted_ = false; // said goodbye
    bool writing_ = false;
    CompletionWaiter* writer_ = nullptr; // while it waits for a buffer or for credits

    Send credit_return_;
    bool returning_credits_ = false; // by a message in flight
    CompletionCallback<&StreamState::receive> receiver_{*this};
    CompletionCallback<&StreamState::complete_sends> sender_{*this};
    CompletionCallback<&StreamState::complete_credit_return> credit_returner_{*this};
};

inline StreamState::StreamState(AsyncQp qp, const ProtectionDomain& domain, std::size_t buffer_size,
                                std::uint32_t buffers)
    : buffer_size_(buffer_size), buffers_(buffers), router_(qp.state_->router),
      region_(allocate(domain)), receives_(buffers + extra_receives), sends_(buffers) {
    qp_.emplace(std::move(qp));
    const QueuePairOptions& queues = qp_->queue_pair().options();
    if (queues.type != IBV_QPT_RC || queues.max_recv_wr < receives_.size()) {
        throw_error(std::errc::invalid_argument,
                    "a stream of " + std::to_string(buffers_) + " buffers takes an RC queue pair " +
                        "with " + std::to_string(receives_.size()) + " receives of its own");
    }
    std::size_t offset = 0;
    const auto next_buffer = [&] {
        return region_.slice(std::exchange(offset, offset + stride()), buffer_bytes());
    };
    for (Receive& receive : receives_) {
        receive.buffer = next_buffer();
        receive.operation.waiter_ = &receiver_;
        post(receive);
    }
    rethrow_failure();
    for (Send& send : sends_) {
        send.message = next_buffer();
        send.operation.waiter_ = &sender_;
    }
    credit_return_.message = region_.slice(offset, stream_header_size);
    credit_return_.operation.waiter_ = &credit_returner_;
}

} // namespace asyncverbs::detail
