// SPDX-License-Identifier: MIT
// The shared state of an AsioStream, and the calls that are started on it.
#pragma once

#include <array>
#include <atomic>
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <tuple>
#include <type_traits>
#include <utility>

#include <asyncverbs/adapters/detail/asio_operation.hpp>
#include <asyncverbs/adapters/detail/asio_support.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/rdma/stream.hpp>

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/buffer.hpp>
#else
#include <asio/buffer.hpp>
#endif

namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR {

// The first buffers of a sequence that are not empty, as a Stream takes them.
template <class Byte>
class AsioSpans {
public:
    template <class Buffers>
    explicit AsioSpans(const Buffers& buffers) {
        using Buffer =
            std::conditional_t<std::is_const_v<Byte>, net::const_buffer, net::mutable_buffer>;
        const auto end = net::buffer_sequence_end(buffers);
        for (auto each = net::buffer_sequence_begin(buffers); each != end; ++each) {
            const Buffer buffer(*each);
            if (buffer.size() == 0) continue;
            if (count_ == spans_.size()) break;
            spans_[count_++] = {static_cast<Byte*>(buffer.data()), buffer.size()};
        }
    }

    operator std::span<const std::span<Byte>>() const noexcept {
        return std::span(spans_).first(count_);
    }
    bool empty() const noexcept { return count_ == 0; }

private:
    std::array<std::span<Byte>, 16> spans_{};
    std::size_t count_ = 0;
};

// The calls of an AsioStream, and their completion signatures. Without a buffer, Asio expects a
// call to complete also while another one waits.
struct AsioRead {
    using Signature = void(AsioError, std::size_t);
    static constexpr bool reads = true;

    bool is_empty() const noexcept { return spans.empty(); }
    auto start(Stream& stream, std::stop_token stop) const {
        return stream.read_some(spans, std::move(stop));
    }

    AsioSpans<std::byte> spans;
};
struct AsioWrite {
    using Signature = void(AsioError, std::size_t);
    static constexpr bool reads = false;

    bool is_empty() const noexcept { return spans.empty(); }
    auto start(Stream& stream, std::stop_token stop) const {
        return stream.write_some(spans, std::move(stop));
    }

    AsioSpans<const std::byte> spans;
};
struct AsioClose {
    using Signature = void(AsioError);
    static constexpr bool reads = false;

    bool is_empty() const noexcept { return false; }
    auto start(Stream& stream, std::stop_token stop) const { return stream.close(std::move(stop)); }
};

// One call, for handlers of any type. Used on the executor of the stream.
class AsioStreamCall : public ListNode {
public:
    struct Destroy {
        void operator()(AsioStreamCall* call) const noexcept { call->destroy(); }
    };
    using Owner = std::unique_ptr<AsioStreamCall, Destroy>;

    const std::uint64_t id;
    const bool reads;

    /// Runs it to its first suspension.
    virtual void begin(std::stop_token stop) noexcept = 0;
    /// Completes it, unless it has begun, without a transfer.
    virtual void cancel() noexcept = 0;

protected:
    AsioStreamCall(std::uint64_t number, bool is_read) noexcept : id(number), reads(is_read) {}
    ~AsioStreamCall() = default;

private:
    virtual void destroy() noexcept = 0; // the handler, too
};

// The state that an AsioStream shares with its calls. Used on the executor, except where it says
// otherwise.
template <class Executor>
class AsioStreamState final : public AsioServiceMember,
                              public std::enable_shared_from_this<AsioStreamState<Executor>> {
public:
    using executor_type = Executor;
    using Owner = AsioStreamCall::Owner;

    static std::shared_ptr<AsioStreamState> create(const Executor& executor, Stream stream) {
        auto state = std::make_shared<AsioStreamState>(executor, std::move(stream));
        state->join_service(executor);
        return state;
    }

    AsioStreamState(const Executor& executor, Stream stream)
        : executor_(executor), stream_(std::move(stream)) {}
    ~AsioStreamState() { leave_service(); }

    // From any thread, while the context exists.
    const Executor& executor() const noexcept { return *executor_; }
    std::uint64_t next_id() noexcept { return next_id_.fetch_add(1, std::memory_order_relaxed); }

    bool is_shut_down() const noexcept { return !executor_; }
    Stream& stream() noexcept { return *stream_; }

    void start(Owner owner) {
        AsioStreamCall& call = *owner.release();
        if (!stream_ || call.id < first_not_cancelled_) return call.cancel();
        std::stop_source& stop = stop_of(call);
        if (stop.stop_requested()) {
            try {
                stop = std::stop_source();
            } catch (const std::bad_alloc&) { // nothing was transferred
                return call.cancel();
            }
        }
        calls_.push_back(call);
        call.begin(stop.get_token());
    }

    void cancel() noexcept {
        first_not_cancelled_ = next_id_.load(std::memory_order_relaxed);
        reads_.request_stop();
        writes_.request_stop();
    }
    void cancel(std::uint64_t id) noexcept {
        AsioStreamCall* const call = calls_.find_if([&](auto& each) { return each.id == id; });
        if (call != nullptr) stop_of(*call).request_stop(); // there is no other one
    }

    /// Ends the calls that wait: the router resumes them.
    void close() noexcept { stream_.reset(); }

private:
    std::stop_source& stop_of(const AsioStreamCall& call) noexcept {
        return call.reads ? reads_ : writes_;
    }

    // Destroys the handlers, as Asio does. A handler may own the AsioStream.
    void shutdown() noexcept override {
        const std::shared_ptr<AsioStreamState> alive = this->weak_from_this().lock();
        IntrusiveList<AsioStreamCall> calls;
        calls.append(calls_);
        while (!calls.empty()) AsioStreamCall::Destroy()(&calls.take_front());
        executor_.reset(); // a strand must not outlive its context
    }

    std::optional<Executor> executor_;
    std::optional<Stream> stream_; // until the AsioStream is destroyed
    std::stop_source reads_;       // of the read that waits
    std::stop_source writes_;
    IntrusiveList<AsioStreamCall> calls_;
    std::uint64_t first_not_cancelled_ = 0; // by cancel()
    std::atomic<std::uint64_t> next_id_{0};
};

// A call with its handler, in one allocation: the promise of a coroutine that awaits the stream.
template <class Handler, class Executor, class Call>
class AsioStreamPromise final : public AsioStreamCall,
                                public AsioOperation<AsioStreamPromise<Handler, Executor, Call>,
                                                     Handler, AsioStreamState<Executor>> {
    using State = AsioStreamState<Executor>;
    using Operation = AsioOperation<AsioStreamPromise, Handler, State>;
    using typename Operation::Self;
    friend Operation;

    static constexpr bool transfers = !std::is_same_v<Call, AsioClose>;

public:
    struct Coroutine {
        using promise_type = AsioStreamPromise;
        AsioStreamPromise& promise;
    };

    AsioStreamPromise(Handler& handler, const std::shared_ptr<State>& state, const Call& call)
        : AsioStreamCall(state->next_id(), Call::reads), Operation(handler, state), call_(call) {}

    /// Starts a call, from any thread.
    static void start(Handler handler, const std::shared_ptr<State>& state, const Call& call) {
        Operation::initiate(Self(&run(handler, state, call).promise));
    }

    // --- required by the language ---

    static void* operator new(std::size_t size, Handler& handler, const std::shared_ptr<State>&,
                              const Call&) {
        return AsioFrameAllocation<Handler>::allocate(size, handler);
    }
    // NOLINTNEXTLINE(misc-new-delete-overloads): a coroutine frame is freed by this one
    static void operator delete(void* frame, std::size_t size) noexcept {
        AsioFrameAllocation<Handler>::deallocate(frame, size);
    }

    struct FinalAwaiter {
        bool await_ready() const noexcept { return false; }
        // Returns void: another thread may destroy the coroutine before complete() returns.
        void await_suspend(std::coroutine_handle<AsioStreamPromise> self) const noexcept {
            self.promise().complete();
        }
        void await_resume() const noexcept {}
    };
    Coroutine get_return_object() noexcept { return {*this}; }
    std::suspend_always initial_suspend() const noexcept { return {}; }
    FinalAwaiter final_suspend() const noexcept { return {}; }
    void return_value(std::size_t transferred) noexcept {
        transferred_ = transferred;
        if (Call::reads && transferred == 0 && !call_.is_empty()) error_ = net::error::eof;
    }
    void unhandled_exception() noexcept {
        try {
            throw;
        } catch (const std::system_error& error) {
            error_ = to_asio(error.code());
        } catch (const std::bad_alloc&) {
            error_ = to_asio(std::make_error_code(std::errc::not_enough_memory));
        } catch (...) { // std::logic_error: another call of this direction waits
            error_ = to_asio(std::make_error_code(std::errc::device_or_resource_busy));
        }
    }

private:
    struct ThisPromise {
        bool await_ready() const noexcept { return false; }
        bool await_suspend(std::coroutine_handle<AsioStreamPromise> self) noexcept {
            promise = &self.promise();
            return false;
        }
        AsioStreamPromise& await_resume() const noexcept { return *promise; }
        AsioStreamPromise* promise = nullptr;
    };

    // The arguments are those of the promise.
    static Coroutine run(Handler&, const std::shared_ptr<State>&, const Call&) {
        AsioStreamPromise& self = co_await ThisPromise();
        if (self.call_.is_empty()) co_return 0;
        Stream& stream = self.state().stream();
        if constexpr (transfers) {
            co_return co_await self.call_.start(stream, self.stop_);
        } else {
            co_await self.call_.start(stream, self.stop_);
            co_return 0;
        }
    }

    auto result() const {
        if constexpr (transfers) {
            return std::tuple(error_, transferred_);
        } else {
            return std::tuple(error_);
        }
    }

    void begin(std::stop_token stop) noexcept override {
        stop_ = std::move(stop);
        std::coroutine_handle<AsioStreamPromise>::from_promise(*this).resume();
    }
    void complete() noexcept {
        unlink();
        Operation::post_handler();
    }
    void cancel() noexcept override {
        error_ = net::error::operation_aborted;
        complete();
    }
    void destroy() noexcept override { Operation::destroy(); }

    const Call call_;
    std::stop_token stop_;
    AsioError error_;
    std::size_t transferred_ = 0;
};

} // namespace asyncverbs::detail::inline ASYNCVERBS_ASIO_FLAVOUR
