// SPDX-License-Identifier: MIT
// A pipe: a file descriptor that a test makes readable, unreadable or hung up.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace asyncverbs::support {

class Pipe {
public:
    Pipe() {
        int fds[2];
        if (::pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) {
            throw std::system_error(errno, std::system_category(), "pipe2");
        }
        reader_ = fds[0];
        writer_ = fds[1];
    }
    Pipe(const Pipe&) = delete;
    Pipe& operator=(const Pipe&) = delete;
    ~Pipe() {
        close_reader();
        close_writer();
    }

    int reader() const noexcept { return reader_; }
    int writer() const noexcept { return writer_; }

    void put() const {
        if (::write(writer_, "x", 1) != 1) {
            throw std::system_error(errno, std::system_category(), "write");
        }
    }

    /// Reads one byte; false if there was none.
    bool take() const {
        char byte = 0;
        return ::read(reader_, &byte, 1) == 1;
    }

    void close_writer() {
        if (writer_ >= 0) ::close(std::exchange(writer_, -1));
    }
    void close_reader() {
        if (reader_ >= 0) ::close(std::exchange(reader_, -1));
    }

private:
    int reader_ = -1;
    int writer_ = -1;
};

} // namespace asyncverbs::support
