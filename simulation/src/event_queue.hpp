// SPDX-License-Identifier: MIT
// A queue of events with a real file descriptor, like the kernel's behind a completion channel or a
// context: readable while events are queued, blocking or not as set by fcntl, in an error condition
// without data after the device was removed.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

namespace asyncverbs::simulated {

// A datagram socket that holds one byte, a token, per queued event, up to the limit of the kernel.
// Each token that is added is a new edge for epoll.
class EventDescriptor {
public:
    EventDescriptor();
    ~EventDescriptor();
    EventDescriptor(const EventDescriptor&) = delete;
    EventDescriptor& operator=(const EventDescriptor&) = delete;

    int fd() const { return fd_; }
    // Adds tokens until there is one per event, or the descriptor is full.
    void fill(std::size_t events);
    // Removes tokens until there are no more than events.
    void drain(std::size_t events);
    // A reader has read one token.
    void token_taken() { --tokens_; }
    // EPOLLERR without EPOLLIN, until a reader consumes the error.
    void raise_error();
    // Closes the descriptor. False if the application read or closed it.
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

    // After finish(), events are ignored.
    void push(const Event& event) {
        if (finished_) {
            return;
        }
        events_.push_back(event);
        descriptor_.fill(events_.size());
    }

    // The event of a token that was read; std::nullopt if it was removed meanwhile.
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

    // Queued events can still be read; after them, readers get an error.
    void finish() {
        finished_ = true;
        raise_error_if_finished();
    }
    // A reader got an error instead of a token: raise it again for the next reader.
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
