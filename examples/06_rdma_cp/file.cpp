// SPDX-License-Identifier: MIT
#include "file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

namespace rdma_cp {

namespace {

// The rest of a partial file's name has to fit, too.
constexpr std::size_t max_name = 200;

[[noreturn]] void fail_with_errno(const std::string& what) {
    throw FileError(what + ": " + std::strerror(errno));
}

std::uint64_t nanoseconds(const timespec& time) {
    return static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000u +
           static_cast<std::uint64_t>(time.tv_nsec);
}

int open_or_fail(const std::string& path, int flags) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC);
    if (fd < 0) fail_with_errno(path);
    return fd;
}

struct stat status_of(int fd, const std::string& path) {
    struct stat status;
    if (::fstat(fd, &status) != 0) fail_with_errno(path);
    return status;
}

void read_at(int fd, std::uint64_t offset, std::span<std::byte> bytes, const std::string& path) {
    while (!bytes.empty()) {
        const ssize_t count = ::pread(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail_with_errno("reading " + path);
        if (count == 0) throw FileError(path + " became shorter while it was copied");
        offset += static_cast<std::uint64_t>(count);
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
}

} // namespace

Descriptor::~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
}

// --- the file that is sent ---

SourceFile::SourceFile(std::string path)
    : path_(std::move(path)), fd_(open_or_fail(path_, O_RDONLY)) {
    const struct stat status = status_of(fd_.get(), path_);
    if (!S_ISREG(status.st_mode)) throw FileError(path_ + " is not a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
    modified_ = nanoseconds(status.st_mtim);
}

Offer SourceFile::offer() const {
    const std::size_t slash = path_.rfind('/');
    const std::string name = slash == std::string::npos ? path_ : path_.substr(slash + 1);
    if (name.size() > max_name) throw FileError(path_ + ": the name is too long");
    if (!is_plain(name)) throw FileError(path_ + ": the name has control characters");
    return {name, size_, modified_};
}

void SourceFile::read(std::uint64_t offset, std::span<std::byte> bytes) const {
    read_at(fd_.get(), offset, bytes, path_);
}

void SourceFile::check_unchanged() const {
    const struct stat status = status_of(fd_.get(), path_);
    if (static_cast<std::uint64_t>(status.st_size) != size_ ||
        nanoseconds(status.st_mtim) != modified_) {
        throw FileError(path_ + " was changed while it was copied");
    }
}

// --- the file that is received ---

PartialFile::PartialFile(const std::string& directory, const Offer& offer, bool overwrite)
    : name_(offer.name), partial_name_("." + name_ + "." + std::to_string(offer.size) + "-" +
                                       std::to_string(offer.modified) + ".partial"),
      overwrite_(overwrite), directory_fd_(open_or_fail(directory, O_RDONLY | O_DIRECTORY)),
      fd_([this] {
          check_name();
          return ::openat(directory_fd_.get(), partial_name_.c_str(),
                          O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
      }()) {
    if (fd_.get() < 0) fail("cannot be created");
    if (::flock(fd_.get(), LOCK_EX | LOCK_NB) != 0) {
        throw FileBusy(name_ + " is being received from somebody else");
    }
    const struct stat status = status_of(fd_.get(), partial_name_);
    if (!S_ISREG(status.st_mode)) throw FileError(partial_name_ + " is not a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (size_ > offer.size) { // nobody else's doing, but it would never fit
        if (::ftruncate(fd_.get(), 0) != 0) fail("cannot be truncated");
        size_ = 0;
    }
    hash_what_is_there();
}

void PartialFile::check_name() const {
    const bool leaves_directory =
        name_.find('/') != std::string::npos || name_ == "." || name_ == "..";
    if (leaves_directory) throw FileError("\"" + name_ + "\" is not in the target directory");
    if (name_.empty() || name_.size() > max_name || name_.find('\0') != std::string::npos) {
        throw FileError("a file cannot have such a name here");
    }
    if (overwrite_) return;
    if (::faccessat(directory_fd_.get(), name_.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
        throw FileError(name_ + " exists already");
    }
}

void PartialFile::hash_what_is_there() {
    std::vector<std::byte> bytes(block_size);
    for (std::uint64_t offset = 0; offset < size_;) {
        const std::uint64_t length = std::min<std::uint64_t>(bytes.size(), size_ - offset);
        const std::span<std::byte> part = std::span(bytes).first(length);
        read_at(fd_.get(), offset, part, partial_name_);
        checksum_.add(part);
        offset += length;
    }
}

void PartialFile::append(std::span<const std::byte> bytes) {
    checksum_.add(bytes);
    while (!bytes.empty()) {
        const ssize_t count =
            ::pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(size_));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) fail("cannot be written");
        size_ += static_cast<std::uint64_t>(count);
        bytes = bytes.subspan(static_cast<std::size_t>(count));
    }
}

void PartialFile::finish(const Digest& digest) {
    if (digest != checksum_.digest()) {
        ::unlinkat(directory_fd_.get(), partial_name_.c_str(), 0);
        throw FileError(name_ + ": what has come is not what was sent; it was removed");
    }
    if (::fsync(fd_.get()) != 0) fail("cannot be written");
    const unsigned flags = overwrite_ ? 0 : RENAME_NOREPLACE;
    if (::renameat2(directory_fd_.get(), partial_name_.c_str(), directory_fd_.get(), name_.c_str(),
                    flags) != 0) {
        fail("cannot be given its name");
    }
    if (::fsync(directory_fd_.get()) != 0) fail("may lose its name");
}

void PartialFile::fail(const std::string& what) const { fail_with_errno(name_ + " " + what); }

} // namespace rdma_cp
