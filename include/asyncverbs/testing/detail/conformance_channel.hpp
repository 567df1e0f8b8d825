// SPDX-License-Identifier: MIT
// What the conformance suite waits for: the end of a pipe or of a socket, which it makes readable,
// reads, and hangs up.
#pragma once

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace asyncverbs::detail::conformance {

/// Two connected descriptors, both non-blocking, as a completion channel is.
class Channel {
public:
    enum class Kind { pipe, socket };

    explicit Channel(Kind kind = Kind::pipe) {
        int fds[2];
        const int result =
            kind == Kind::pipe
                ? ::pipe2(fds, O_CLOEXEC | O_NONBLOCK)
                : ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds);
        if (result != 0) throw std::system_error(errno, std::system_category(), "pipe2");
        reader_ = fds[0];
        writer_ = fds[1];
    }
    Channel(const Channel&) = delete;
    Channel& operator=(const Channel&) = delete;
    ~Channel() {
        close_reader();
        close_writer();
    }

    int reader() const noexcept { return reader_; }
    int writer() const noexcept { return writer_; }

    /// From any thread.
    void put() const noexcept {
        const char byte = 'x';
        while (::write(writer_, &byte, 1) < 0 && errno == EINTR) {
        }
    }

    /// Takes one byte; false: there was none.
    bool take() const {
        char byte = 0;
        ssize_t count = 0;
        do {
            count = ::read(reader_, &byte, 1);
        } while (count < 0 && errno == EINTR);
        if (count >= 0) return count == 1;
        if (errno == EAGAIN) return false;
        throw std::system_error(errno, std::system_category(), "reading what the notifier watches");
    }

    void close_writer() noexcept { close(writer_); }
    void close_reader() noexcept { close(reader_); }

private:
    static void close(int& fd) noexcept {
        if (fd >= 0) ::close(std::exchange(fd, -1));
    }

    int reader_ = -1;
    int writer_ = -1;
};

} // namespace asyncverbs::detail::conformance
