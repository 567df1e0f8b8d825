# Mutations of executor/.

# --- posts and iterations ---

set(tests executor/detail/remote_queue_test.cpp)

mutation(post-does-not-wake executor/detail/run_queue.hpp
    [[        return head == &asleep_;]]
    [[        return false;]])

mutation(posts-come-in-reverse-order executor/detail/run_queue.hpp
    [[        while (newest != nullptr) {
            WorkItem* const older = newest->next_posted;
            newest->next_posted = oldest;
            oldest = newest;
            newest = older;
        }]]
    [[        oldest = newest;]])

mutation(loop-sleeps-although-something-was-posted executor/detail/run_queue.hpp
    [[        return head_.compare_exchange_strong(expected, &asleep_) || expected == &asleep_;]]
    [[        return !head_.compare_exchange_strong(expected, &asleep_) || expected == nullptr;]])

set(tests executor/epoll_executor_test.cpp)

mutation(iteration-runs-what-becomes-ready executor/detail/run_queue.hpp
    [[            item.run(item); // may destroy anything but the loop]]
    [[            item.run(item);
            collect_posted();
            batch.append(ready_);]])

mutation(exception-drops-what-was-ready executor/detail/run_queue.hpp
    [[                queue.ready_.prepend(*this);]]
    "")

mutation(eintr-of-epoll-wait-is-an-error executor/detail/epoll_loop.hpp
    [[        if (errno != EINTR) throw]]
    [[        throw]])

mutation(stop-ends-all-later-runs executor/detail/epoll_loop.hpp
    [[        ~Run() { ends_.store(0); }]]
    [[        ~Run() {}]])

mutation(idle-executor-is-not-readable executor/detail/epoll_loop.hpp
    [[    if (!loop_.remote_.sleep() || !loop_.ready_.empty()) loop_.request_iteration();]]
    [[    loop_.remote_.sleep();]])

mutation(posted-functions-leak executor/detail/epoll_loop.hpp
    [[        if (item.discard != nullptr) item.discard(item);]]
    "")

set(tests executor/detail/epoll_loop_test.cpp)

mutation(run-blocks-after-its-end executor/detail/epoll_loop.hpp
    [[remote_.sleep() && !ended();]]
    [[remote_.sleep();]])

# --- waits for a descriptor ---

set(tests executor/epoll_notifier_test.cpp)

mutation(level-without-a-waiter-is-not-masked executor/detail/epoll_loop.hpp
    [[        if (edge_) {
            pending_edge_ = true;
            return;
        }]]
    [[        pending_edge_ = edge_;
        if (edge_ || events != 0) return;]])

mutation(hang-up-is-only-masked executor/detail/epoll_loop.hpp
    [[(events & (EPOLLERR | EPOLLHUP)) == 0 && control]]
    [[control]])

mutation(destroyed-notifier-does-not-cancel executor/detail/awaiters.hpp
    [[    loop_->complete(waiter, ECANCELED);]]
    "")

mutation(second-wait-replaces-the-first executor/detail/awaiters.hpp
    [[    waiter.error = waiter_ != nullptr ? EBUSY : watch();]]
    [[    waiter.error = watch();]])

mutation(stop-of-an-earlier-wait-counts executor/detail/awaiters.hpp
    [[    if (waiter.stop != stop_) {
        relay_.reset();]]
    [[    if (waiter.stop != stop_) {]])

mutation(destroyed-wait-makes-up-an-edge executor/detail/awaiters.hpp
    [[    if (waiter_->linked() && waiter_->error == 0) pending_edge_ = edge_;]]
    [[    if (waiter_->linked()) pending_edge_ = edge_;]])

mutation(destroyed-wait-loses-its-edge executor/detail/awaiters.hpp
    [[    if (waiter_->linked() && waiter_->error == 0) pending_edge_ = edge_;]]
    "")

# --- timers ---

set(tests executor/epoll_sleep_test.cpp)

mutation(timer-is-set-once executor/detail/timers.hpp
    [[        armed_ = Deadline::never;
        const]]
    [[        const]])

mutation(equal-times-end-in-reverse-order executor/detail/timers.hpp
    [[a.sequence_ < b.sequence_;]]
    [[a.sequence_ > b.sequence_;]])

mutation(stop-does-not-end-a-sleep executor/detail/awaiters.hpp
    [[        loop_->start_timer(*this);
        relay_.set(stop, *this, *loop_);]]
    [[        loop_->start_timer(*this);]])

set(sanitizer address)

mutation(destroyed-sleep-stays-in-the-heap executor/detail/awaiters.hpp
    [[        relay_.reset();
        loop_->stop_timer(*this);]]
    [[        relay_.reset();]])

set(sanitizer "")

# --- the pool ---

set(tests executor/executor_pool_test.cpp)

mutation(pool-waits-for-a-task-that-has-ended executor/executor_pool.hpp
    [[        if (&other != &core) other.arrived.resume();]]
    [[        if (&other == &core) other.arrived.resume();]])

mutation(pool-ignores-the-exception-of-a-task executor/executor_pool.hpp
    [[        if (failed()) keep_alive->end();]]
    "")

mutation(pool-does-not-pin executor/executor_pool.hpp
    [[        if (!options.pin) cpus_.clear();]]
    [[        if (options.pin) cpus_.clear();]])

mutation(pool-stop-before-a-run-is-lost executor/executor_pool.hpp
    [[        if (!phase_.compare_exchange_strong(phase, Phase::stopped)) end();]]
    [[        if (phase_.load() != phase) end();]])

# --- time limits ---

set(tests executor/with_timeout_test.cpp)

mutation(stop-does-not-reach-the-timed-operation executor/with_timeout.hpp
    [[[&source] { source.request_stop(); }]]
    [[[] {}]])

mutation(canceled-operation-is-taken-for-timed-out executor/with_timeout.hpp
    [[            return limit.has_passed() && error == std::errc::operation_canceled;]]
    [[            return error == std::errc::operation_canceled;]])

mutation(late-error-is-taken-for-a-timeout executor/with_timeout.hpp
    [[            return limit.has_passed() && error == std::errc::operation_canceled;]]
    [[            return limit.has_passed();]])

mutation(operation-without-time-is-started executor/with_timeout.hpp
    [[    if (duration > duration.zero()) {]]
    [[    if (true) {]])

mutation(failed-time-limit-is-a-timeout executor/with_timeout.hpp
    [[        }
        limit.rethrow_failure();
    }]]
    [[        }
    }]])

mutation(timer-fd-ends-too-early executor/with_timeout.hpp
    [[while (!error && Deadline::Clock::now() < time) error =]]
    [[if (false) error =]])
