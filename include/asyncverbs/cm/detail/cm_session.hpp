// SPDX-License-Identifier: MIT
// An identifier of the connection manager whose events a coroutine reads, and the awaiter for
// operations on it.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cerrno>
#include <chrono>
#include <concepts>
#include <coroutine>
#include <exception>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <system_error>
#include <utility>

#include <asyncverbs/cm/connection_options.hpp>
#include <asyncverbs/coro/detail/deadline.hpp>
#include <asyncverbs/coro/detail/intrusive_list.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/executor/detail/timers.hpp>
#include <asyncverbs/verbs/detail/native.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

// What LoopHandle::wait() waits for.
class FdHandler {
public:
    /// Called before the first wait and after each one, with the error of that wait. Returns
    /// whether waiting is over.
    virtual bool on_readable(std::error_code error) = 0;

    /// Called with an exception of on_readable() or of the notifier, which ends the wait.
    virtual void on_error(std::exception_ptr error) noexcept = 0;

protected:
    ~FdHandler() = default;
};

template <class Loop>
concept gives_notifiers = requires(Loop& loop, int fd) {
    { loop.notifier(fd) } -> CqNotifier;
};

// An event loop without its type, so that connections on all loops have the same type. Its one
// coroutine is a template: GCC emits other coroutines of a header even where nothing calls them.
class LoopHandle {
public:
    template <class Loop>
        requires(!std::same_as<Loop, LoopHandle>)
    explicit LoopHandle(Loop& loop) noexcept : loop_(&loop), wait_(&wait_on<Loop>) {
        static_assert(gives_notifiers<Loop>,
                      "the loop has no member notifier(int) that gives a CqNotifier");
    }

    /// Waits until `fd` is readable, again and again, as long as `handler` wants; throws nothing
    /// and allocates nothing once it has begun. `stop` ends one wait with operation_canceled.
    Task<> wait(int fd, FdHandler& handler, std::stop_token stop) const {
        return wait_(loop_, fd, handler, std::move(stop));
    }

private:
    template <class Loop>
    static Task<> wait_on(void* loop, int fd, FdHandler& handler, std::stop_token stop) {
        try {
            auto notifier = static_cast<Loop*>(loop)->notifier(fd);
            std::error_code error;
            while (!handler.on_readable(error)) error = co_await notifier.readable(stop);
        } catch (...) {
            handler.on_error(std::current_exception());
        }
    }

    void* loop_;
    Task<> (*wait_)(void*, int, FdHandler&, std::stop_token);
};

// A file descriptor that becomes readable at its deadline, or at once by notify(). It lets a wait
// with a time limit be ended by another coroutine on every loop that can wait for descriptors.
class TimedWakeFd : public ListNode {
public:
    int fd() const noexcept { return timer_.get(); }
    bool expired() const noexcept { return Deadline::Clock::now() >= deadline_; }

    void set_deadline(Deadline::Clock::time_point deadline) noexcept {
        deadline_ = deadline;
        reset();
    }
    void reset() noexcept { timer_.set(deadline_); } // after it was readable
    void notify() noexcept { timer_.set(Deadline::next_iteration); }

private:
    TimerFd timer_;
    Deadline::Clock::time_point deadline_ = Deadline::never;
};

// Calls a function of librdmacm; throws std::system_error that names `call` if it fails.
template <class... Parameters, class... Arguments>
void call_cm(const std::string& call, int (*function)(Parameters...), Arguments... arguments) {
    errno = 0;
    if (const int result = function(arguments...)) {
        throw_verb_error(call.c_str(), verb_errno(result));
    }
}

template <auto destroy>
struct DestroyCm {
    void operator()(auto* object) const noexcept { destroy(object); }
};
using UniqueCmId = std::unique_ptr<rdma_cm_id, DestroyCm<rdma_destroy_id>>;
using UniqueCmChannel = std::unique_ptr<rdma_event_channel, DestroyCm<rdma_destroy_event_channel>>;

// A copy of an event that is already acknowledged: rdma_destroy_id waits for all acknowledgements.
struct CmEvent {
    rdma_cm_event_type type;
    int status;
    PrivateData private_data;
    UniqueCmId request; // RDMA_CM_EVENT_CONNECT_REQUEST: the identifier to answer with
};

// An rdma_cm_id with its own event channel. So every event on the channel belongs to this
// identifier, or is a connection request to it.
class CmId {
public:
    CmId() : channel_(open_channel()), id_(create()) {}

    /// Moves a request from the listener's channel to a new one.
    explicit CmId(UniqueCmId request) : channel_(open_channel()), id_(std::move(request)) {
        // Waits for unacknowledged events of the request; there are none.
        call_cm("rdma_migrate_id", rdma_migrate_id, get(), channel_.get());
    }

    rdma_cm_id* get() const noexcept { return id_.get(); }
    int fd() const noexcept { return channel_->fd; }

    /// Adds an identifier on the same channel, for a listener on two addresses.
    rdma_cm_id* add() {
        second_ = create();
        return second_.get();
    }

    /// The next event, or nullopt if there is none.
    std::optional<CmEvent> next_event() {
        rdma_cm_event* event = nullptr;
        for (;;) {
            errno = 0;
            const int result = rdma_get_cm_event(channel_.get(), &event);
            if (result == 0) break;
            const int error = verb_errno(result);
            if (error == EAGAIN) return std::nullopt;
            if (error != EINTR) throw_verb_error("rdma_get_cm_event", error);
        }
        CmEvent copy{event->event,
                     event->status,
                     {event->param.conn.private_data, event->param.conn.private_data_len},
                     {}};
        if (copy.type == RDMA_CM_EVENT_CONNECT_REQUEST) copy.request.reset(event->id);
        rdma_ack_cm_event(event);
        return copy;
    }

private:
    static UniqueCmChannel open_channel() {
        errno = 0;
        UniqueCmChannel channel(rdma_create_event_channel());
        if (!channel) {
            const int error = verb_errno();
            throw_verb_error(error == ENODEV || error == ENOENT
                                 ? "rdma_create_event_channel (is /dev/infiniband/rdma_cm there, "
                                   "and may this user open it?)"
                                 : "rdma_create_event_channel",
                             error);
        }
        set_non_blocking(channel->fd);
        return channel;
    }

    UniqueCmId create() {
        rdma_cm_id* id = nullptr;
        call_cm("rdma_create_id", rdma_create_id, channel_.get(), &id, nullptr, RDMA_PS_TCP);
        return UniqueCmId(id);
    }

    UniqueCmChannel channel_; // destroyed last
    UniqueCmId id_;
    UniqueCmId second_;
};

// The state of one identifier. One coroutine reads its events, even if there is no waiter,
// stores what they report, and notifies the waiters. So a peer that disconnects is answered at
// once, and no user coroutine runs while events are read.
class CmSession final : FdHandler {
public:
    /// Reads no events before run_on().
    CmSession(LoopHandle loop, CmId id) : loop_(loop) { id_.emplace(std::move(id)); }
    CmSession(const CmSession&) = delete;
    CmSession& operator=(const CmSession&) = delete;

    /// Ends the session without blocking. Its waiters fail when the loop resumes them.
    void close() noexcept {
        reader_.reset(); // leaves the loop before the channel is closed
        to_error();
        request_.reset();
        id_.reset();
        notify_all();
    }

    /// From now on the session belongs to `loop`, and to the thread of it. Once.
    void run_on(LoopHandle loop) {
        loop_ = loop;
        start_reading();
    }

    const LoopHandle& loop() const noexcept { return loop_; }
    rdma_cm_id* id() const noexcept { return id_->get(); }

    /// The handshake is complete: later failures end the connection.
    void establish() noexcept { established_ = true; }

    /// Sets the queue pair of the connection, which goes to the error state when that ends.
    void connect(const std::shared_ptr<ibv_qp>& qp) noexcept { qp_ = qp; }

    /// Tells the peer, or answers it, as librdmacm does for queue pairs that it created itself.
    void disconnect() {
        to_error();
        if (id_) call_cm("rdma_disconnect", rdma_disconnect, id());
    }

    // --- For operations that wait ---

    void enter(TimedWakeFd& waiter) noexcept { waiters_.push_back(waiter); }

    /// Leaves the next request, which is there or has yet to be read, to the next waiter.
    void leave(TimedWakeFd& waiter) noexcept {
        if (!waiter.linked()) return;
        waiter.unlink();
        if (!reading_) notify_one();
    }

    /// How the connection ended, if it has.
    std::optional<rdma_cm_event_type> end() const noexcept { return end_; }

    /// Whether `expected` has happened; throws if it cannot happen any more, or if the next step
    /// must fail because the connection has ended. There is no next step once it is established.
    bool has_answer(rdma_cm_event_type expected, const std::string& call) const {
        const bool answered = answer_ && answer_->type == expected;
        if (!answered || expected != RDMA_CM_EVENT_ESTABLISHED) throw_if_failed(call);
        return answered;
    }
    const PrivateData& answer() const noexcept { return answer_->private_data; }

    /// Whether there is a connection request and it is `waiter`'s turn to take it.
    bool has_request(const TimedWakeFd& waiter, const std::string& call) {
        start_reading();
        if (!request_) throw_if_failed(call);
        return request_ && &waiters_.front() == &waiter;
    }
    CmEvent take_request() noexcept {
        CmEvent request = std::move(*request_);
        request_.reset();
        return request;
    }

    /// Throws if the handshake has failed or the connection has ended.
    void throw_if_failed(const std::string& call) const {
        if (answer_ && is_failure(answer_->type)) throw_failure(call, *answer_);
        if (end_ == RDMA_CM_EVENT_DEVICE_REMOVAL) {
            throw_error(std::errc::no_such_device, call + ": the device was removed");
        }
        if (end_) throw_error(std::errc::connection_reset, call + ": the peer has disconnected");
    }

    /// Throws if no event can come any more.
    void check_open(const std::string& call) const {
        if (failure_) std::rethrow_exception(failure_);
        if (!id_) throw_error(std::errc::operation_canceled, call + ": it was destroyed");
    }

private:
    // Does nothing if the session is closed, has failed, is being read, or has a request that was
    // not taken. Further requests stay in the kernel: it enforces the backlog and drops what
    // exceeds it, so that the peer asks again. Throws if it cannot begin, for lack of memory for
    // example; the next call tries again.
    void start_reading() {
        if (!id_ || failure_ || reading_ || request_) return;
        reader_.emplace(operator co_await(loop_.wait(id_->fd(), *this, {})));
        reading_ = true;
        reader_->await_suspend(std::noop_coroutine()).resume(); // nothing to resume at its end
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

    bool on_readable(std::error_code error) override {
        if (error) throw std::system_error(error, "CqNotifier::readable");
        while (!request_) {
            std::optional<CmEvent> event = id_->next_event();
            if (!event) return false;
            take(std::move(*event));
        }
        reading_ = false;
        return true;
    }

    void on_error(std::exception_ptr error) noexcept override {
        failure_ = std::move(error);
        reading_ = false;
        notify_all();
    }

    void take(CmEvent event) {
        switch (event.type) {
        case RDMA_CM_EVENT_CONNECT_REQUEST:
            request_ = std::move(event);
            notify_one();
            return;
        case RDMA_CM_EVENT_DISCONNECTED:
            // Answers, because the peer waits for that; also if both have disconnected at once.
            rdma_disconnect(id());
            finish(event.type);
            return;
        case RDMA_CM_EVENT_DEVICE_REMOVAL:
            finish(event.type);
            return;
        case RDMA_CM_EVENT_ADDR_RESOLVED:
        case RDMA_CM_EVENT_ADDR_ERROR:
        case RDMA_CM_EVENT_ROUTE_RESOLVED:
        case RDMA_CM_EVENT_ROUTE_ERROR:
        case RDMA_CM_EVENT_CONNECT_RESPONSE:
        case RDMA_CM_EVENT_CONNECT_ERROR:
        case RDMA_CM_EVENT_UNREACHABLE:
        case RDMA_CM_EVENT_REJECTED:
        case RDMA_CM_EVENT_ESTABLISHED:
            // A peer that leaves before it knows that the connection is established rejects it.
            if (established_ && is_failure(event.type)) return finish(RDMA_CM_EVENT_DISCONNECTED);
            answer_ = std::move(event);
            notify_all();
            return;
        default: // an address change, a queue pair that can be reused, future events
            return;
        }
    }

    void finish(rdma_cm_event_type end) noexcept {
        to_error();
        if (!end_) end_ = end;
        notify_all();
    }

    static bool is_failure(rdma_cm_event_type type) noexcept {
        return type == RDMA_CM_EVENT_ADDR_ERROR || type == RDMA_CM_EVENT_ROUTE_ERROR ||
               type == RDMA_CM_EVENT_CONNECT_ERROR || type == RDMA_CM_EVENT_UNREACHABLE ||
               type == RDMA_CM_EVENT_REJECTED;
    }

    [[noreturn]] static void throw_failure(const std::string& call, const CmEvent& event) {
        if (event.type == RDMA_CM_EVENT_REJECTED) {
            throw ConnectionRejected(call, event.status, event.private_data);
        }
        // A positive status is a code of the transport; its only text is the event's name.
        const int error = event.status < 0 ? -event.status : EHOSTUNREACH;
        throw_verb_error((call + ": " + rdma_event_str(event.type)).c_str(), error);
    }

    // Only once: later the queue pair may belong to another connection.
    void to_error() noexcept {
        const std::shared_ptr<ibv_qp> qp = std::exchange(qp_, {}).lock();
        if (!qp) return;
        // It fails if the queue pair was already reset, or the device was removed.
        static_cast<void>(QueuePairStep(IBV_QPS_ERR, "ERR").try_apply(qp.get()));
        connection_ended(qp).request_stop();
    }

    void notify_all() noexcept {
        waiters_.for_each([](TimedWakeFd& waiter) { waiter.notify(); });
    }
    void notify_one() noexcept {
        if (!waiters_.empty()) waiters_.front().notify();
    }

    LoopHandle loop_;
    std::optional<CmId> id_; // empty: closed
    bool established_ = false;
    std::weak_ptr<ibv_qp> qp_;
    std::optional<CmEvent> answer_;
    std::optional<rdma_cm_event_type> end_;
    std::exception_ptr failure_; // events can no longer be read
    std::optional<CmEvent> request_;
    IntrusiveList<TimedWakeFd> waiters_;
    bool reading_ = false;
    std::optional<TaskAwaiter<void>> reader_; // the coroutine that reads; destroyed first
};

/// Closes the session when it is destroyed.
class CmSessionOwner {
public:
    CmSessionOwner(LoopHandle loop, CmId id)
        : session_(std::make_shared<CmSession>(loop, std::move(id))) {}
    CmSessionOwner(CmSessionOwner&&) noexcept = default;
    CmSessionOwner& operator=(CmSessionOwner&& other) noexcept {
        CmSessionOwner old(std::move(other));
        old.session_.swap(session_);
        return *this;
    }
    ~CmSessionOwner() {
        if (session_) session_->close();
    }

    explicit operator bool() const noexcept { return session_ != nullptr; }
    CmSession* operator->() const { return shared().get(); }
    const std::shared_ptr<CmSession>& shared() const { return checked(session_, "connection"); }

private:
    std::shared_ptr<CmSession> session_;
};

// Base of the operations on a session, which start when they are awaited, once, as an rvalue. They
// are no Tasks, because GCC emits a coroutine that is not a template into every file that includes
// it. An operation also has Result, ready(waiter), which throws if the operation has failed, and
// finish(), which returns the Result.
struct [[nodiscard]] CmOperation {
    std::shared_ptr<CmSession> session; // may be empty until start() has returned
    std::string call;                   // what errors name
    std::optional<std::chrono::milliseconds> timeout;
    std::stop_token stop;

    void start() {}
};

// Awaits the event that answers a call of librdmacm.
struct AnswerOperation : CmOperation {
    using Result = void;

    AnswerOperation(std::shared_ptr<CmSession> of, rdma_cm_event_type answer, std::string to,
                    std::chrono::milliseconds limit, std::stop_token token)
        : CmOperation{std::move(of), std::move(to), limit, std::move(token)}, expected(answer) {}

    bool ready(const TimedWakeFd&) const { return session->has_answer(expected, call); }
    void finish() const {}

    rdma_cm_event_type expected;
};

// May be moved until it is awaited. Then the session and the loop refer to it.
template <class Operation>
class CmAwaiter final : FdHandler {
public:
    explicit CmAwaiter(Operation&& operation) : operation_(std::move(operation)) {}
    CmAwaiter(CmAwaiter&& other) noexcept : CmAwaiter(std::move(other.operation_)) {}
    CmAwaiter& operator=(CmAwaiter&&) = delete;
    ~CmAwaiter() { leave(); }

    bool await_ready() {
        wake_.emplace();
        operation_.start();
        if (operation_.timeout) wake_->set_deadline(Deadline::after(*operation_.timeout));
        operation_.session->enter(*wake_);
        return ready();
    }

    std::coroutine_handle<> await_suspend(std::coroutine_handle<> awaiting) {
        wait_.emplace(operator co_await(
            operation_.session->loop().wait(wake_->fd(), *this, operation_.stop)));
        return wait_->await_suspend(awaiting);
    }

    typename Operation::Result await_resume() {
        leave();
        if (error_) std::rethrow_exception(std::move(error_));
        return operation_.finish();
    }

private:
    bool on_readable(std::error_code error) override {
        if (error) throw std::system_error(error, operation_.call);
        wake_->reset();
        return ready();
    }
    void on_error(std::exception_ptr error) noexcept override { error_ = std::move(error); }

    bool ready() {
        if (operation_.ready(*wake_)) return true;
        operation_.session->check_open(operation_.call);
        if (wake_->expired()) throw_error(std::errc::timed_out, operation_.call);
        return false;
    }

    // Before the caller goes on: it must not hold up the next waiter.
    void leave() noexcept {
        wait_.reset();
        if (wake_ && operation_.session) operation_.session->leave(*wake_);
    }

    Operation operation_;
    std::optional<TimedWakeFd> wake_;
    std::exception_ptr error_;
    std::optional<TaskAwaiter<void>> wait_;
};

template <std::derived_from<CmOperation> Operation>
CmAwaiter<Operation> operator co_await(Operation operation) {
    return CmAwaiter<Operation>(std::move(operation));
}

} // namespace asyncverbs::detail
