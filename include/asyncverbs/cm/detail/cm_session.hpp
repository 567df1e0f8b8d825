// SPDX-License-Identifier: MIT
// An event loop, as far as the connection manager needs one: it waits for file descriptors. Its
// type is left behind here, for connections that differ in nothing else are of one type.
#pragma once

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <cerrno>
#include <chrono>
#include <concepts>
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
#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/coro/task.hpp>
#include <asyncverbs/cq/cq_notifier.hpp>
#include <asyncverbs/executor/detail/timers.hpp>
#include <asyncverbs/verbs/detail/handle.hpp>
#include <asyncverbs/verbs/detail/queue_pair_setup.hpp>
#include <asyncverbs/verbs/detail/verb_call.hpp>
#include <asyncverbs/verbs/error.hpp>

namespace asyncverbs::detail {

template <class Loop>
concept gives_notifiers = requires(Loop& loop, int fd) {
    { loop.notifier(fd) } -> CqNotifier;
};

class CmLoop {
public:
    template <class Loop>
        requires(!std::same_as<Loop, CmLoop>)
    explicit CmLoop(Loop& loop) noexcept
        : loop_(&loop), readable_(&readable_on<Loop>), watch_(&watch_on<Loop>) {
        static_assert(gives_notifiers<Loop>,
                      "the loop has no member notifier(int) that gives a CqNotifier");
    }

    /// What CqNotifier::readable() gives.
    Task<std::error_code> readable(int fd, std::stop_token stop) const {
        return readable_(loop_, fd, std::move(stop));
    }

    /// Calls `read` with `object` at once, and again whenever `fd` is readable, until it returns
    /// false. Allocates nothing once it has begun.
    Task<> watch(int fd, bool (*read)(void* object), void* object) const {
        return watch_(loop_, fd, read, object);
    }

private:
    template <class Loop>
    static Task<std::error_code> readable_on(void* loop, int fd, std::stop_token stop) {
        auto notifier = static_cast<Loop*>(loop)->notifier(fd);
        co_return co_await notifier.readable(stop);
    }

    template <class Loop>
    static Task<> watch_on(void* loop, int fd, bool (*read)(void*), void* object) {
        auto notifier = static_cast<Loop*>(loop)->notifier(fd);
        while (read(object)) {
            const std::error_code error = co_await notifier.readable({});
            if (error) throw std::system_error(error, "CqNotifier::readable");
        }
    }

    void* loop_;
    Task<std::error_code> (*readable_)(void*, int, std::stop_token);
    Task<> (*watch_)(void*, int, bool (*)(void*), void*);
};

// A file descriptor that is readable from a point in time on, or earlier if somebody rings. So a
// wait that has a bound and can be ended by another coroutine needs no more of an event loop than
// that it waits for file descriptors.

class Alarm : public ListNode {
public:
    explicit Alarm(typename Deadline::Clock::time_point deadline) : deadline_(deadline) { reset(); }

    int fd() const noexcept { return timer_.get(); }
    bool expired() const noexcept { return Deadline::Clock::now() >= deadline_; }

    void ring() noexcept { timer_.set(Deadline::next_iteration); }
    void reset() noexcept { timer_.set(deadline_); } // after it was readable

private:
    TimerFd timer_;
    typename Deadline::Clock::time_point deadline_;
};

// An identifier of the connection manager (rdma_cm_id) with an event channel of its own, which
// makes every event on the channel one of this identifier, or of a request that it got.

// Calls a function of librdmacm; if it fails, throws std::system_error, which says `what`.
template <class... Parameters, class... Arguments>
void call_cm(const std::string& what, int (*function)(Parameters...), Arguments... arguments) {
    errno = 0;
    if (const int result = function(arguments...)) {
        throw_verb_error(what.c_str(), verb_errno(result));
    }
}

struct DestroyCmId {
    void operator()(rdma_cm_id* id) const noexcept { rdma_destroy_id(id); }
};
using UniqueCmId = std::unique_ptr<rdma_cm_id, DestroyCmId>;

// A copy of an event, which is acknowledged already: rdma_destroy_id waits for all that were read.
struct CmEvent {
    rdma_cm_event_type type;
    int status;
    PrivateData private_data;
    UniqueCmId request; // RDMA_CM_EVENT_CONNECT_REQUEST: the identifier to answer with
};

class CmId {
public:
    CmId() : channel_(open_channel()) {
        rdma_cm_id* id = nullptr;
        call_cm("rdma_create_id", rdma_create_id, channel_.get(), &id, nullptr, RDMA_PS_TCP);
        id_.reset(id);
    }

    /// Takes a request from the channel of the listener that got it.
    explicit CmId(UniqueCmId request) : channel_(open_channel()), id_(std::move(request)) {
        // Waits for events of the request that were read from the old channel; there are none.
        call_cm("rdma_migrate_id", rdma_migrate_id, get(), channel_.get());
    }

    rdma_cm_id* get() const noexcept { return id_.get(); }
    int fd() const noexcept { return channel_->fd; }

    /// The next event, if there is one.
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
    struct DestroyChannel {
        void operator()(rdma_event_channel* channel) const noexcept {
            rdma_destroy_event_channel(channel);
        }
    };
    using UniqueChannel = std::unique_ptr<rdma_event_channel, DestroyChannel>;

    static UniqueChannel open_channel() {
        errno = 0;
        UniqueChannel channel(rdma_create_event_channel());
        if (!channel) throw_verb_error("rdma_create_event_channel", verb_errno());
        set_non_blocking(channel->fd);
        return channel;
    }

    UniqueChannel channel_;
    UniqueCmId id_; // destroyed first
};

// What happens on one identifier of the connection manager. One coroutine reads its events, whether
// or not anybody waits, and keeps what they say; those who wait, any number, are rung by it. So a
// peer that leaves is answered at once, and no coroutine of a user's runs while events are read.

class CmSession {
public:
    CmSession(CmLoop loop, CmId id) : loop_(loop) {
        id_.emplace(std::move(id));
        start_reading();
        if (failure_) std::rethrow_exception(failure_);
    }
    CmSession(const CmSession&) = delete;
    CmSession& operator=(const CmSession&) = delete;

    /// Ends the session without blocking. Those who wait fail when the loop resumes them.
    void close() noexcept {
        reader_.reset(); // it leaves the loop before the channel is closed
        to_error();
        request_.reset();
        id_.reset();
        ring_all();
    }

    const CmLoop& loop() const noexcept { return loop_; }
    rdma_cm_id* id() const noexcept { return id_->get(); }

    /// The handshake has ended: what fails from now on is the connection.
    void establish() noexcept { established_ = true; }

    /// The queue pair of the connection: it goes to the error state when the connection ends.
    void connect(const std::shared_ptr<ibv_qp>& qp) noexcept { qp_ = qp; }

    /// Tells the peer, or answers it. librdmacm does the same to a queue pair of its own.
    void disconnect() {
        to_error();
        if (id_) call_cm("rdma_disconnect", rdma_disconnect, id());
    }

    /// How the connection ended, once it has.
    std::optional<rdma_cm_event_type> end() const noexcept { return end_; }

    // --- awaited; `self` keeps the session while one of them waits ---

    /// The event that ends a step: `expected`, or else an exception, which says `step`.
    static Task<PrivateData> answer(std::shared_ptr<CmSession> self, rdma_cm_event_type expected,
                                    std::string step, std::chrono::milliseconds bound,
                                    std::stop_token stop) {
        Waiter waiter(*self, Deadline::after(bound));
        while (!self->answer_ || self->answer_->type != expected) {
            self->throw_if_failed(step);
            co_await self->ring(waiter, step, stop);
        }
        co_return self->answer_->private_data;
    }

    /// The end of the connection.
    static Task<rdma_cm_event_type> ended(std::shared_ptr<CmSession> self, std::string step,
                                          typename Deadline::Clock::time_point deadline,
                                          std::stop_token stop) {
        Waiter waiter(*self, deadline);
        while (!self->end_) co_await self->ring(waiter, step, stop);
        co_return *self->end_;
    }

    /// A request for a connection; first come, first served.
    static Task<CmEvent> request(std::shared_ptr<CmSession> self, std::stop_token stop) {
        const std::string step = "Listener::accept";
        Waiter waiter(*self, Deadline::never);
        for (;;) {
            // Who is cancelled leaves it to the next one.
            if (stop.stop_requested()) throw_error(std::errc::operation_canceled, step);
            self->start_reading();
            if (self->request_ && &self->waiters_.front() == &waiter) break;
            if (!self->request_) self->throw_if_failed(step);
            co_await self->ring(waiter, step, stop);
        }
        CmEvent request = std::move(*self->request_);
        self->request_.reset();
        co_return request;
    }

private:
    // In the line of those who wait. What is left to do when it leaves is for the next one.
    struct Waiter : Alarm {
        Waiter(CmSession& owner, typename Deadline::Clock::time_point deadline)
            : Alarm(deadline), session(owner) {
            session.waiters_.push_back(*this);
        }
        ~Waiter() {
            this->unlink();
            if (session.request_ || !session.reading_) session.ring_first();
        }
        CmSession& session;
    };

    // Unless it is closed, has failed, is being read, or has a request that nobody has taken. The
    // kernel keeps the others: it knows the backlog, and drops what is beyond it, so that the peer
    // asks again.
    void start_reading() {
        if (!id_ || failure_ || reading_ || request_) return;
        if (!reader_) reader_.emplace();
        reader_->spawn(read_events(loop_.watch(id_->fd(), &read, this)));
    }

    Task<> read_events(Task<> watching) {
        reading_ = true;
        try {
            co_await std::move(watching);
        } catch (...) {
            failure_ = std::current_exception();
            ring_all();
        }
        reading_ = false;
    }

    static bool read(void* session) {
        auto& self = *static_cast<CmSession*>(session);
        while (std::optional<CmEvent> event = self.id_->next_event()) {
            self.take(std::move(*event));
            if (self.request_) return false;
        }
        return true;
    }

    void take(CmEvent event) {
        switch (event.type) {
        case RDMA_CM_EVENT_CONNECT_REQUEST:
            request_ = std::move(event);
            ring_first();
            return;
        case RDMA_CM_EVENT_DISCONNECTED:
            // The answer, without which the peer waits; also where both have left at once.
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
            // A peer that goes before it has learnt that the connection is established rejects it.
            if (established_ && is_failure(event.type)) return finish(RDMA_CM_EVENT_DISCONNECTED);
            answer_ = std::move(event);
            ring_all();
            return;
        default: // an address that moved, a queue pair that may be used again, what is yet to come
            return;
        }
    }

    void finish(rdma_cm_event_type end) noexcept {
        to_error();
        if (!end_) end_ = end;
        ring_all();
    }

    // Waits until something may have changed.
    Task<> ring(Waiter& waiter, const std::string& step, std::stop_token stop) {
        if (failure_) std::rethrow_exception(failure_);
        if (!id_) throw_error(std::errc::operation_canceled, step + ": it was destroyed");
        if (waiter.expired()) throw_error(std::errc::timed_out, step);
        const std::error_code error = co_await loop_.readable(waiter.fd(), std::move(stop));
        if (error) throw std::system_error(error, step);
        waiter.reset();
    }

    void throw_if_failed(const std::string& step) const {
        if (answer_ && is_failure(answer_->type)) throw_failure(step, *answer_);
        if (end_ == RDMA_CM_EVENT_DEVICE_REMOVAL) {
            throw_error(std::errc::no_such_device, step + ": the device was removed");
        }
        if (end_) throw_error(std::errc::connection_reset, step + ": the peer has disconnected");
    }

    static bool is_failure(rdma_cm_event_type type) noexcept {
        return type == RDMA_CM_EVENT_ADDR_ERROR || type == RDMA_CM_EVENT_ROUTE_ERROR ||
               type == RDMA_CM_EVENT_CONNECT_ERROR || type == RDMA_CM_EVENT_UNREACHABLE ||
               type == RDMA_CM_EVENT_REJECTED;
    }

    [[noreturn]] static void throw_failure(const std::string& step, const CmEvent& event) {
        if (event.type == RDMA_CM_EVENT_REJECTED) {
            throw ConnectionRejected(step, event.status, event.private_data);
        }
        // What is no errno is a code of the transport, which has no text but the event's name.
        const int error = event.status < 0 ? -event.status : EHOSTUNREACH;
        throw_verb_error((step + ": " + rdma_event_str(event.type)).c_str(), error);
    }

    // Once: later the queue pair may belong to another connection.
    void to_error() noexcept {
        const std::shared_ptr<ibv_qp> qp = std::exchange(qp_, {}).lock();
        // Where that fails it has gone further, or the device has.
        if (qp) static_cast<void>(QueuePairStep(IBV_QPS_ERR, "ERR").try_apply(qp.get()));
    }

    void ring_all() noexcept {
        waiters_.for_each([](Waiter& waiter) { waiter.ring(); });
    }

    void ring_first() noexcept {
        if (!waiters_.empty()) waiters_.front().ring();
    }

    CmLoop loop_;
    std::optional<CmId> id_; // none: closed
    bool established_ = false;
    std::weak_ptr<ibv_qp> qp_;
    std::optional<CmEvent> answer_;
    std::optional<rdma_cm_event_type> end_;
    std::exception_ptr failure_; // nobody reads events any more
    std::optional<CmEvent> request_;
    IntrusiveList<Waiter> waiters_;
    bool reading_ = false;
    std::optional<Scope> reader_; // the coroutine that reads; last, so destroyed first
};

/// Closes the session when it goes.
class CmSessionOwner {
public:
    CmSessionOwner(CmLoop loop, CmId id)
        : session_(std::make_shared<CmSession>(loop, std::move(id))) {}
    CmSessionOwner(CmSessionOwner&&) noexcept = default;
    CmSessionOwner& operator=(CmSessionOwner&& other) noexcept {
        CmSessionOwner(std::move(other)).session_.swap(session_);
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

} // namespace asyncverbs::detail
