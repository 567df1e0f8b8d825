// SPDX-License-Identifier: MIT
// A file descriptor that is closed with its owner.
// The executor has three of them, and each may fail to open after the others have.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace asyncverbs::detail {

class FileDescriptor {
public:
    /// Takes the result of a system call that opens; a negative one throws and names `call`.
    FileDescriptor(int fd, const char* call) : fd_(fd) {
        if (fd < 0) throw std::system_error(errno, std::system_category(), call);
    }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    ~FileDescriptor() { ::close(fd_); }

    int get() const noexcept { return fd_; }

private:
    int fd_;
};

} // namespace asyncverbs::detail
