// SPDX-License-Identifier: MIT
// The file to send and the file to receive. Everything here may block the thread for long.
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
#include <vector>

namespace rdma_cp {

/// The name of a file, fit for a terminal.
inline std::string shown(const std::string& name) {
    return terminal::is_plain(name) ? name : terminal::printable(name);
}

[[noreturn]] inline void fail_with_errno(const std::string& what) {
    throw FileError(what + ": " + std::strerror(errno));
}

/// For what the file system does not offer, while the copy can do without.
inline void warn_with_errno(const std::string& what) {
    std::fprintf(stderr, "warning: %s: %s\n", what.c_str(), std::strerror(errno));
}

/// Whether the last call failed because the file system does not offer it.
inline bool is_not_offered() { return errno == ENOSYS || errno == EINVAL || errno == EOPNOTSUPP; }

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
    File(int fd, const std::string& name, const char* what = "") : fd_(fd), name_(shown(name)) {
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

class SourceFile : public File {
public:
    explicit SourceFile(const std::string& path) // O_NONBLOCK: a FIFO would be waited for
        : File(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC), path), status_(status()),
          short_name_(path.substr(path.rfind('/') + 1)) {
        if (!terminal::is_plain(short_name_)) {
            throw FileError(name() + ": the name has control characters");
        }
    }

    /// The name without the directory.
    const std::string& short_name() const noexcept { return short_name_; }
    /// The size that it had at first.
    std::uint64_t size() const noexcept { return static_cast<std::uint64_t>(status_.st_size); }

    /// Throws FileError if the file is no longer as it was at first.
    void check_unchanged() const {
        const struct stat now = status();
        if (now.st_size != status_.st_size || now.st_mtim.tv_sec != status_.st_mtim.tv_sec ||
            now.st_mtim.tv_nsec != status_.st_mtim.tv_nsec) {
            throw FileError(name() + " was changed while it was copied; copy it again");
        }
    }

private:
    struct stat status_;
    std::string short_name_;
};

/// A file to receive. It is called .NAME.partial until it is complete.
class TargetFile {
public:
    /// Opens what `directory` has of the file, or begins it. A complete file of that size may be
    /// the one that is offered; it is not written. Throws FileError.
    TargetFile(const File& directory, const std::string& name, std::uint64_t size, bool overwrite)
        : directory_(directory), name_(checked(name)), partial_name_(partial_name(name_)),
          overwrite_(overwrite), complete_(exists() && !overwrite),
          file_(complete_ ? ::openat(directory.fd(), name_.c_str(), read_flags)
                          : ::openat(directory.fd(), partial_name_.c_str(), write_flags, 0666),
                name_, complete_ ? " exists already and cannot be read" : " cannot be created") {
        if (!complete_) lock();
        const struct stat status = file_.status();
        if (!complete_ && status.st_nlink > 1) { // rename() could not remove this name
            throw FileError(partial_name_ + " is another name of a complete file; remove it");
        }
        size_ = static_cast<std::uint64_t>(status.st_size);
        if (complete_ && size_ != size) throw FileError(name_ + " exists already");
        if (size_ > size) begin_anew();
        file_.hash(checksum_, size_);
    }

    std::uint64_t size() const noexcept { return size_; }
    Digest digest() const { return checksum_.digest(); }

    /// Forgets what there is, because the sender's file begins otherwise.
    void begin_anew() {
        if (complete_) throw FileError(name_ + " exists already");
        if (::ftruncate(file_.fd(), 0) != 0) fail("cannot be truncated");
        checksum_ = Checksum();
        size_ = 0;
    }

    void append(Bytes bytes) {
        checksum_.add(bytes);
        while (!bytes.empty()) {
            const ssize_t count =
                ::pwrite(file_.fd(), bytes.data(), bytes.size(), static_cast<off_t>(size_));
            if (count < 0 && errno == EINTR) continue;
            if (count == 0) errno = EIO; // as a broken file system does
            if (count <= 0) fail("cannot be written");
            size_ += static_cast<std::uint64_t>(count);
            bytes = bytes.subspan(static_cast<std::size_t>(count));
        }
    }

    /// The file is complete: gives it its name if it has this digest, or else removes it.
    void finish(const Digest& digest) {
        if (complete_) return;
        if (digest != checksum_.digest()) {
            throw FileError(name_ + ": what arrived is not what was sent; " + remove_part());
        }
        if (::fsync(file_.fd()) != 0) {
            if (!is_not_offered()) {
                // The next fsync() may succeed although these bytes are lost, so begin anew then.
                const std::string cause = std::strerror(errno);
                throw FileError(name_ + " cannot be written: " + cause + "; " + remove_part());
            }
            warn_with_errno(name_ + " may be lost if the power fails now");
        }
        rename();
        if (::fsync(directory_.fd()) != 0) {
            warn_with_errno(name_ + " may lose its name if the power fails now");
        }
    }

private:
    static constexpr int read_flags = O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;
    static constexpr int write_flags = O_RDWR | O_CREAT | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC;

    // The peer chooses the name: it must not leave the directory, nor be that of a part.
    static std::string checked(std::string name) {
        if (name.empty() || name.find('\0') != std::string::npos ||
            (name.starts_with('.') && name.ends_with(".partial"))) {
            throw FileError("a file cannot have such a name here");
        }
        if (name.find('/') != std::string::npos || name == "." || name == "..") {
            throw FileError("\"" + name + "\" is not in the target directory");
        }
        return name;
    }
    // A file system limits the length of names, so a long one is replaced by a number.
    static std::string partial_name(const std::string& name) {
        const bool is_long = name.size() > 100;
        return "." + (is_long ? std::to_string(XXH3_64bits(name.data(), name.size())) : name) +
               ".partial";
    }

    // False if the directory has no such file.
    bool find(const std::string& name, struct stat& found) const {
        if (::fstatat(directory_.fd(), name.c_str(), &found, AT_SYMLINK_NOFOLLOW) == 0) return true;
        if (errno != ENOENT) fail("cannot be created");
        return false;
    }
    bool exists() const {
        struct stat found{};
        return find(name_, found);
    }

    // Against another receiver. Not every file system has locks.
    void lock() const {
        const bool locked = ::flock(file_.fd(), LOCK_EX | LOCK_NB) == 0;
        if (!locked && errno != EWOULDBLOCK) {
            return warn_with_errno(name_ + " is not locked: receive it only once at a time");
        }
        struct stat named{}; // the other receiver may have renamed the file meanwhile
        if (!locked || !find(partial_name_, named) || named.st_ino != file_.status().st_ino) {
            throw FileError(name_ + " is being received from another sender", true);
        }
    }

    // Never replaces a file unless it may.
    void rename() const {
        const int in = directory_.fd();
        const char* const from = partial_name_.c_str();
        const char* const to = name_.c_str();
        if (overwrite_) {
            if (::renameat(in, from, in, to) != 0) fail("cannot be given its name");
            return;
        }
        if (::renameat2(in, from, in, to, RENAME_NOREPLACE) == 0) return;
        if (!is_not_offered()) fail("cannot be given its name");
        if (::linkat(in, from, in, to, 0) != 0) {
            fail(errno == EEXIST ? "cannot be given its name"
                                 : "can be given its name here only with --force");
        }
        if (::unlinkat(in, from, 0) != 0) {
            warn_with_errno(partial_name_ + " is another name of " + name_ + " and stays");
        }
    }

    // Returns what became of it.
    std::string remove_part() const {
        if (::unlinkat(directory_.fd(), partial_name_.c_str(), 0) == 0) return "it was removed";
        return "remove " + partial_name_;
    }

    [[noreturn]] void fail(const char* what) const { fail_with_errno(name_ + " " + what); }

    const File& directory_;
    std::string name_;
    std::string partial_name_;
    bool overwrite_;
    bool complete_;
    File file_;
    std::uint64_t size_ = 0;
    Checksum checksum_;
};

} // namespace rdma_cp
