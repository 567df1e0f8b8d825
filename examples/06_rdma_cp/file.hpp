// SPDX-License-Identifier: MIT
// The file to send and the file to receive. Reading and writing block the thread: a server for busy
// disks would use threads or io_uring.
#pragma once

#include "protocol.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace rdma_cp {

/// An error of a file, worded for a person. Trying again does not help.
struct FileError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// The same file is being received from another sender.
struct FileBusy : std::runtime_error {
    using std::runtime_error::runtime_error;
};

[[noreturn]] inline void fail_with_errno(const std::string& what) {
    throw FileError(what + ": " + std::strerror(errno));
}

/// XXH3 with 128 bits, part by part.
class Checksum {
public:
    Checksum() : state_(XXH3_createState()) {
        if (!state_) throw std::bad_alloc();
        XXH3_128bits_reset(state_.get());
    }
    void add(Bytes bytes) { XXH3_128bits_update(state_.get(), bytes.data(), bytes.size()); }
    Digest digest() const {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
        return std::bit_cast<Digest>(canonical);
    }

private:
    struct Free {
        void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
    };
    std::unique_ptr<XXH3_state_t, Free> state_;
};

/// Owns a file descriptor, of which `name` is a name for errors.
class File {
public:
    /// Throws FileError that names the file and says what failed, if `fd` is negative.
    File(int fd, std::string name, const char* what = "") : fd_(fd), name_(std::move(name)) {
        if (fd_ < 0) fail_with_errno(name_ + what);
    }
    File(const File&) = delete;
    File& operator=(const File&) = delete;
    ~File() { ::close(fd_); }

    int fd() const noexcept { return fd_; }
    const std::string& name() const noexcept { return name_; }

    struct stat status() const {
        struct stat status;
        if (::fstat(fd_, &status) != 0) fail_with_errno(name_);
        if (!S_ISREG(status.st_mode)) throw FileError(name_ + " is not a regular file");
        return status;
    }

    void read(std::uint64_t offset, std::span<std::byte> bytes) const {
        while (!bytes.empty()) {
            const ssize_t count =
                ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) fail_with_errno("reading " + name_);
            if (count == 0) throw FileError(name_ + " became shorter while it was copied");
            offset += static_cast<std::uint64_t>(count);
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        }
    }

    /// Adds the first `size` bytes to a checksum.
    void hash(Checksum& checksum, std::uint64_t size) const {
        std::vector<std::byte> buffer(block_size);
        for (std::uint64_t offset = 0; offset < size;) {
            const std::span<std::byte> part =
                std::span(buffer).first(std::min<std::uint64_t>(block_size, size - offset));
            read(offset, part);
            checksum.add(part);
            offset += part.size();
        }
    }

private:
    int fd_;
    std::string name_;
};

constexpr std::size_t max_name = 200; // leaves room for the rest of a partial file's name

class SourceFile : public File {
public:
    explicit SourceFile(const std::string& path)
        : File(::open(path.c_str(), O_RDONLY | O_CLOEXEC), path),
          offer_(offer_of(path.substr(path.rfind('/') + 1))) {
        if (offer_.name.size() > max_name) throw FileError(path + ": the name is too long");
        if (!is_plain(offer_.name)) throw FileError(path + ": the name has control characters");
    }

    const Offer& offer() const noexcept { return offer_; }

    /// Throws FileError if the file is no longer as offered.
    void check_unchanged() const {
        const Offer now = offer_of(offer_.name);
        if (now.size != offer_.size || now.modified != offer_.modified) {
            throw FileError(name() + " was changed while it was copied");
        }
    }

private:
    Offer offer_of(const std::string& short_name) const {
        const struct stat now = status();
        const auto nanoseconds = now.st_mtim.tv_sec * 1'000'000'000 + now.st_mtim.tv_nsec;
        return {short_name, static_cast<std::uint64_t>(now.st_size),
                static_cast<std::uint64_t>(nanoseconds)};
    }

    Offer offer_;
};

/// An incomplete file. Its name says what it is a part of.
class PartialFile {
public:
    /// Continues the part of `offer` that is in `directory`, or begins one.
    PartialFile(const std::string& directory, const Offer& offer, bool overwrite)
        : directory_(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), directory),
          name_(checked(offer.name, overwrite)),
          partial_name_("." + name_ + "." + std::to_string(offer.size) + "-" +
                        std::to_string(offer.modified) + ".partial"),
          overwrite_(overwrite), file_(::openat(directory_.fd(), partial_name_.c_str(),
                                                O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666),
                                       name_, " cannot be created") {
        if (::flock(file_.fd(), LOCK_EX | LOCK_NB) != 0) {
            throw FileBusy(name_ + " is being received from another sender");
        }
        size_ = static_cast<std::uint64_t>(file_.status().st_size);
        if (size_ > offer.size) { // not written by this program
            if (::ftruncate(file_.fd(), 0) != 0) fail("cannot be truncated");
            size_ = 0;
        }
        file_.hash(checksum_, size_);
    }

    std::uint64_t size() const noexcept { return size_; }

    void append(Bytes bytes) {
        checksum_.add(bytes);
        while (!bytes.empty()) {
            const ssize_t count =
                ::pwrite(file_.fd(), bytes.data(), bytes.size(), static_cast<off_t>(size_));
            if (count < 0 && errno == EINTR) continue;
            if (count < 0) fail("cannot be written");
            size_ += static_cast<std::uint64_t>(count);
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        }
    }

    /// The file is complete: renames it if it has this digest, or else removes it.
    void finish(const Digest& digest) {
        if (digest != checksum_.digest()) {
            ::unlinkat(directory_.fd(), partial_name_.c_str(), 0);
            throw FileError(name_ + ": what arrived is not what was sent; it was removed");
        }
        if (::fsync(file_.fd()) != 0) fail("cannot be written");
        const unsigned flags = overwrite_ ? 0 : RENAME_NOREPLACE;
        if (::renameat2(directory_.fd(), partial_name_.c_str(), directory_.fd(), name_.c_str(),
                        flags) != 0) {
            fail("cannot be given its name");
        }
        if (::fsync(directory_.fd()) != 0) fail("may lose its name");
    }

private:
    // The peer chooses the name: it must not leave the directory.
    std::string checked(const std::string& name, bool overwrite) const {
        if (name.find('/') != std::string::npos || name == "." || name == "..") {
            throw FileError("\"" + name + "\" is not in the target directory");
        }
        if (name.empty() || name.size() > max_name || name.find('\0') != std::string::npos) {
            throw FileError("a file cannot have such a name here");
        }
        if (!overwrite &&
            ::faccessat(directory_.fd(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
            throw FileError(name + " exists already");
        }
        return name;
    }
    [[noreturn]] void fail(const char* what) const { fail_with_errno(name_ + " " + what); }

    File directory_;
    std::string name_;
    std::string partial_name_;
    bool overwrite_;
    File file_;
    std::uint64_t size_ = 0;
    Checksum checksum_;
};

} // namespace rdma_cp
