// SPDX-License-Identifier: MIT
// The file that is sent, and the one that is received. Reading and writing block the thread: a
// server for busy disks would use threads or io_uring.
#pragma once

#include "checksum.hpp"
#include "protocol.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

namespace rdma_cp {

/// What is wrong with a file, in words for a person. Trying again does not help.
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Somebody else receives the same file now.
struct FileBusy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Descriptor {
public:
    explicit Descriptor(int fd) noexcept : fd_(fd) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor();

    int get() const noexcept { return fd_; }

private:
    int fd_;
};

class SourceFile {
public:
    explicit SourceFile(std::string path);

    Offer offer() const;
    std::uint64_t size() const noexcept { return size_; }

    void read(std::uint64_t offset, std::span<std::byte> bytes) const;

    /// Throws if it is not any more what offer() said.
    void check_unchanged() const;

private:
    std::string path_;
    Descriptor fd_;
    std::uint64_t size_ = 0;
    std::uint64_t modified_ = 0;
};

/// A file that is not whole yet has another name, which says what it is a part of.
class PartialFile {
public:
    /// Of `offer` in `directory`; what is there of it already stays.
    PartialFile(const std::string& directory, const Offer& offer, bool overwrite);

    std::uint64_t size() const noexcept { return size_; }
    void append(std::span<const std::byte> bytes);

    /// It is whole: gives it its name if it has this digest, or removes it.
    void finish(const Digest& digest);

private:
    void check_name() const;
    void hash_what_is_there();
    [[noreturn]] void fail(const std::string& what) const;

    std::string name_;
    std::string partial_name_;
    bool overwrite_;
    Descriptor directory_fd_;
    Descriptor fd_;
    std::uint64_t size_ = 0;
    Checksum checksum_;
};

} // namespace rdma_cp
