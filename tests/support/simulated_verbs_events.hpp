// SPDX-License-Identifier: MIT
//
// A queue of events behind a real descriptor, as the kernel has it behind a completion channel and
// behind a context: readable while events are queued, blocking or not as fcntl says, an error
// condition without data once the device is gone.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

namespace asyncverbs::simulated {

// A datagram socket that holds one byte, a token, per queued event, or as many as the kernel lets
// it hold. Each token that is added is a new edge for epoll.
class EventDescriptor {
public:
    EventDescriptor();
    ~EventDescriptor();
    EventDescriptor(const EventDescriptor&) = delete;
    EventDescriptor& operator=(const EventDescriptor&) = delete;

    int fd() const { return fd_; }
    // Puts tokens until there is one per event, or as many as the descriptor holds.
    void fill(std::size_t events);
    // Takes tokens away until there are no more than events.
    void drain(std::size_t events);
    // A reader took one token by read_token.
    void token_taken() { --tokens_; }
    // EPOLLERR without EPOLLIN, until a reader takes the error.
    void raise_error();
    // Closes the descriptor. False if it was read or closed by somebody else.
    bool close();

private:
    int fd_ = -1;
    int peer_ = -1;
    std::size_t tokens_ = 0;
};

// Reads one token as the kernel reads an event: blocks unless the descriptor is non-blocking.
// Returns 0 or an errno.
int read_token(int fd);

template <class Event>
class EventQueue {
public:
    int fd() const { return descriptor_.fd(); }
    bool empty() const { return events_.empty(); }
    std::size_t size() const { return events_.size(); }

    // Nothing is queued once the device is gone.
    void push(const Event& event) {
        if (finished_) {
            return;
        }
        events_.push_back(event);
        descriptor_.fill(events_.size());
    }

    // The event that belongs to a token that was read; nothing if it was removed meanwhile.
    std::optional<Event> pop() {
        descriptor_.token_taken();
        std::optional<Event> event;
        if (!events_.empty()) {
            event = events_.front();
            events_.pop_front();
        }
        descriptor_.fill(events_.size());
        raise_error_if_finished();
        return event;
    }

    template <class Predicate>
    std::size_t remove_if(Predicate predicate) {
        const std::size_t removed = std::erase_if(events_, predicate);
        descriptor_.drain(events_.size());
        raise_error_if_finished();
        return removed;
    }

    // What is queued can still be read; after that there is an error instead of a wait.
    void finish() {
        finished_ = true;
        raise_error_if_finished();
    }
    // A reader got an error instead of a token: it is there for the next one too.
    void read_failed() { raise_error_if_finished(); }
    bool at_end() const { return finished_ && events_.empty(); }

    bool close() { return descriptor_.close(); }

private:
    void raise_error_if_finished() {
        if (at_end()) {
            descriptor_.raise_error();
        }
    }

    EventDescriptor descriptor_;
    std::deque<Event> events_;
    bool finished_ = false;
};

} // namespace asyncverbs::simulated
