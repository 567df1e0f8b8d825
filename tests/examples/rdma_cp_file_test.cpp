// SPDX-License-Identifier: MIT
// The files of rdma_cp: which files a peer can create, and when they get their final names.
#include "file.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/catch.hpp"

using namespace rdma_cp;
using asyncverbs::support::contains;
namespace fs = std::filesystem;

namespace {

// The calls of the file system that fail, each with its error: 0 for a write of no bytes.
std::map<std::string, int> refusals;

bool is_refused(const std::string& call) {
    const auto found = refusals.find(call);
    if (found == refusals.end()) return false;
    errno = found->second;
    return true;
}

class Directory {
public:
    Directory() {
        std::string name = fs::temp_directory_path() / "rdma_cp_test.XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        path_ = name;
    }
    Directory(const Directory&) = delete;
    Directory& operator=(const Directory&) = delete;
    ~Directory() { fs::remove_all(path_); }

    const fs::path& path() const { return path_; }
    std::size_t files() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator(path_), fs::directory_iterator()));
    }
    void write(const std::string& name, std::string_view text) const {
        std::ofstream(path_ / name, std::ios::binary) << text;
    }
    std::string read(const std::string& name) const {
        std::ifstream file(path_ / name, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    }

private:
    fs::path path_;
};

std::span<const std::byte> bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

Digest digest_of(std::string_view text) {
    Checksum checksum;
    checksum.add(bytes(text));
    return checksum.digest();
}

// A target in the directory.
struct Target {
    Target(const Directory& in, const std::string& name, std::uint64_t size, bool overwrite = false)
        : opened(::open(in.path().c_str(), O_RDONLY | O_DIRECTORY), in.path()),
          file(opened, name, size, overwrite) {}
    File opened;
    TargetFile file;
};

void receive(const Directory& directory, const std::string& name, std::uint64_t size) {
    const Target target(directory, name, size);
}

} // namespace

// In place of those of the C library.
extern "C" int open(const char* path, int flags, ...) {
    if (is_refused("open")) return -1;
    return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, 0666));
}
extern "C" int openat(int directory, const char* name, int flags, ...) {
    if (is_refused("openat")) return -1;
    return static_cast<int>(::syscall(SYS_openat, directory, name, flags, 0666));
}
extern "C" int flock(int fd, int operation) noexcept {
    if (is_refused("flock")) return -1;
    return static_cast<int>(::syscall(SYS_flock, fd, operation));
}
extern "C" int fstat(int fd, struct stat* status) noexcept {
    if (is_refused("fstat")) return -1;
    return static_cast<int>(::syscall(SYS_newfstatat, fd, "", status, AT_EMPTY_PATH));
}
extern "C" int fstatat(int directory, const char* name, struct stat* status, int flags) noexcept {
    const bool is_part = std::string_view(name).ends_with(".partial");
    if (is_refused(is_part ? "fstatat of the part" : "fstatat")) return -1;
    return static_cast<int>(::syscall(SYS_newfstatat, directory, name, status, flags));
}
extern "C" int ftruncate(int fd, off_t size) noexcept {
    if (is_refused("ftruncate")) return -1;
    return static_cast<int>(::syscall(SYS_ftruncate, fd, size));
}
extern "C" ssize_t pread(int fd, void* buffer, std::size_t size, off_t offset) {
    if (is_refused("pread")) return -1;
    return ::syscall(SYS_pread64, fd, buffer, size, offset);
}
extern "C" ssize_t pwrite(int fd, const void* buffer, std::size_t size, off_t offset) {
    if (is_refused("pwrite")) return errno == 0 ? 0 : -1;
    return ::syscall(SYS_pwrite64, fd, buffer, size, offset);
}
extern "C" int fsync(int fd) {
    struct stat status{};
    ::syscall(SYS_newfstatat, fd, "", &status, AT_EMPTY_PATH);
    if (is_refused(S_ISDIR(status.st_mode) ? "fsync of the directory" : "fsync")) return -1;
    return static_cast<int>(::syscall(SYS_fsync, fd));
}
extern "C" int renameat(int from, const char* old_name, int to, const char* new_name) noexcept {
    if (is_refused("renameat")) return -1;
    return static_cast<int>(::syscall(SYS_renameat2, from, old_name, to, new_name, 0));
}
extern "C" int renameat2(int from, const char* old_name, int to, const char* new_name,
                         unsigned flags) noexcept {
    if (is_refused("renameat2")) return -1;
    return static_cast<int>(::syscall(SYS_renameat2, from, old_name, to, new_name, flags));
}
extern "C" int linkat(int from, const char* old_name, int to, const char* new_name,
                      int flags) noexcept {
    if (is_refused("linkat")) return -1;
    return static_cast<int>(::syscall(SYS_linkat, from, old_name, to, new_name, flags));
}
extern "C" int unlinkat(int directory, const char* name, int flags) noexcept {
    if (is_refused("unlinkat")) return -1;
    return static_cast<int>(::syscall(SYS_unlinkat, directory, name, flags));
}

TEST_CASE("rdma_cp: a file gets its name when it is complete") {
    const Directory directory;
    // Long names do not have room for those of their parts.
    const std::string name = GENERATE(as<std::string>(), "name", std::string(255, 'x'));
    {
        Target target(directory, name, 10);
        target.file.append(bytes("0123456789"));
        CHECK(!fs::exists(directory.path() / name));
        if (name == "name") CHECK(directory.read(".name.partial") == "0123456789");
        target.file.finish(digest_of("0123456789"));
    }
    CHECK(directory.read(name) == "0123456789");
    CHECK(directory.files() == 1);
}

TEST_CASE("rdma_cp: a part is continued, or begun anew") {
    const Directory directory;
    Target(directory, "name", 10).file.append(bytes("01234"));
    Target target(directory, "name", 10);
    CHECK(target.file.size() == 5);
    CHECK(target.file.digest() == digest_of("01234"));
    const bool same = GENERATE(true, false);
    if (!same) {
        target.file.begin_anew();
        CHECK(target.file.digest() == digest_of(""));
    }
    target.file.append(bytes(same ? "56789" : "abcdefghij"));
    target.file.finish(digest_of(same ? "0123456789" : "abcdefghij"));
    CHECK(directory.read("name") == (same ? "0123456789" : "abcdefghij"));
    CHECK(directory.files() == 1);
}

TEST_CASE("rdma_cp: a file with another checksum is removed") {
    const Directory directory;
    Target target(directory, "name", 3);
    target.file.append(bytes("abd"));
    CHECK_THROWS_WITH(target.file.finish(digest_of("abc")), contains("not what was sent"));
    CHECK(directory.files() == 0);
}

TEST_CASE("rdma_cp: a part that is too long is begun anew") {
    const Directory directory;
    directory.write(".name.partial", "abcd");
    CHECK(Target(directory, "name", 3).file.size() == 0);
}

TEST_CASE("rdma_cp: one sender at a time") {
    const Directory directory;
    const Target first(directory, "name", 3);
    bool busy = false;
    try {
        receive(directory, "name", 3);
    } catch (const FileError& error) {
        busy = error.busy;
    }
    CHECK(busy);
    CHECK_NOTHROW(receive(directory, "other", 3));
}

TEST_CASE("rdma_cp: an existing file is overwritten only on request") {
    const Directory directory;
    directory.write("name", "old");
    CHECK_THROWS_WITH(receive(directory, "name", 4), contains("name exists already"));
    CHECK(directory.files() == 1);
    Target target(directory, "name", 3, true);
    target.file.append(bytes("new"));
    CHECK(directory.read("name") == "old");
    target.file.finish(digest_of("new"));
    CHECK(directory.read("name") == "new");
}

TEST_CASE("rdma_cp: a file that has arrived already is granted, but never written") {
    const Directory directory;
    directory.write("name", "old");
    Target target(directory, "name", 3);
    CHECK(target.file.size() == 3);
    CHECK(target.file.digest() == digest_of("old"));
    CHECK_THROWS_WITH(target.file.begin_anew(), contains("name exists already"));
    target.file.finish(digest_of("old"));
    CHECK(directory.read("name") == "old");
    CHECK(directory.files() == 1);
}

TEST_CASE("rdma_cp: a file that appears during the transfer is not overwritten") {
    const Directory directory;
    Target target(directory, "name", 3);
    target.file.append(bytes("new"));
    directory.write("name", "old");
    CHECK_THROWS_WITH(target.file.finish(digest_of("new")), contains("File exists"));
    CHECK(directory.read("name") == "old");
}

TEST_CASE("rdma_cp: no name leads out of the directory, or to another file's part") {
    const Directory directory;
    for (const char* name : {"../name", "/name", "a/b", "..", "."}) {
        CHECK_THROWS_WITH(receive(directory, name, 3), contains("not in the target directory"));
    }
    for (const std::string& name :
         {std::string(), std::string("a\0b", 3), std::string(".x.partial")}) {
        CHECK_THROWS_WITH(receive(directory, name, 3), contains("cannot have such a name"));
    }
    CHECK_THROWS_WITH(receive(directory, std::string(256, 'x'), 3), contains("File name too long"));
    fs::create_symlink("/dev/null", directory.path() / ".name.partial");
    CHECK_THROWS_WITH(receive(directory, "name", 3), contains("cannot be created"));
}

TEST_CASE("rdma_cp: errors of the file system are reported") {
    const Directory directory;
    Target target(directory, "name", 10);
    rlimit old{};
    ::getrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4, old.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    std::string said;
    try {
        target.file.append(bytes("0123456789"));
    } catch (const FileError& error) {
        said = error.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &old);
    CHECK(said == "name cannot be written: File too large");
}

namespace {

// What is in the directory at first, and what the sender sends: "new" as "name".
enum class Case { no_file, part, longer_part, complete, overwrite, appears, damaged };

struct Refused {
    Case in;
    std::map<std::string, int> calls;
    std::string words; // of the warning, or of the error
    bool copied;
    std::size_t files; // in the directory afterwards
};

// Standard error while this object lives.
class Captured {
public:
    Captured() : saved_(::dup(STDERR_FILENO)), file_(::memfd_create("stderr", 0)) {
        ::dup2(file_, STDERR_FILENO);
    }
    Captured(const Captured&) = delete;
    Captured& operator=(const Captured&) = delete;
    ~Captured() {
        ::dup2(saved_, STDERR_FILENO);
        ::close(saved_);
        ::close(file_);
    }
    std::string text() const {
        std::array<char, 1000> bytes{};
        const ssize_t size = ::pread(file_, bytes.data(), bytes.size(), 0);
        return {bytes.data(), static_cast<std::size_t>(size)};
    }

private:
    int saved_;
    int file_;
};

// Receives with these calls refused. Returns what was printed or thrown.
std::string receive_new(const Directory& directory, const Refused& refused) {
    const Captured captured;
    std::string error;
    refusals = refused.calls;
    try {
        Target target(directory, "name", 3, refused.in == Case::overwrite);
        target.file.append(bytes(std::string_view("new").substr(target.file.size())));
        if (refused.in == Case::appears) directory.write("name", "old");
        target.file.finish(digest_of(refused.in == Case::damaged ? "NEW" : "new"));
    } catch (const FileError& failure) {
        CHECK(!failure.busy); // a sender would try again
        error = failure.what();
    }
    refusals.clear();
    return captured.text() + error;
}

} // namespace

TEST_CASE("rdma_cp: what a file system refuses is done without, or reported with its cause") {
    using enum Case;
    const std::string not_locked = "warning: name is not locked";
    const std::string may_be_lost = "warning: name may be lost if the power fails now";
    const std::string may_lose_name = "warning: name may lose its name if the power fails now";
    const Refused refused = GENERATE_REF(values<Refused>({
        {no_file, {}, "", true, 1},
        {no_file, {{"open", EACCES}}, "Permission denied", false, 0},
        {no_file, {{"fstatat", EIO}}, "name cannot be created: Input/output error", false, 0},
        {no_file, {{"openat", EROFS}}, "name cannot be created: Read-only file", false, 0},
        {no_file, {{"openat", EINVAL}}, "name cannot be created: Invalid argument", false, 0},
        {no_file, {{"flock", ENOSYS}}, not_locked, true, 1},
        {no_file, {{"flock", EOPNOTSUPP}}, not_locked, true, 1},
        {no_file, {{"flock", EINVAL}}, not_locked, true, 1},
        {no_file, {{"flock", ENOLCK}}, not_locked, true, 1},
        {no_file, {{"fstatat of the part", EIO}}, "created: Input/output error", false, 1},
        {no_file, {{"fstat", EIO}}, "name: Input/output error", false, 1},
        {no_file, {{"pwrite", EOPNOTSUPP}}, "name cannot be written: Operation not", false, 1},
        {no_file, {{"pwrite", 0}}, "name cannot be written: Input/output error", false, 1},
        {no_file, {{"fsync", EINVAL}}, may_be_lost, true, 1},
        {no_file, {{"fsync", EOPNOTSUPP}}, may_be_lost, true, 1},
        {no_file, {{"fsync", ENOSYS}}, may_be_lost, true, 1},
        {no_file, {{"fsync", EIO}}, "output error; it was removed", false, 0},
        {no_file, {{"fsync", EIO}, {"unlinkat", EIO}}, "remove .name.partial", false, 1},
        {no_file, {{"fsync of the directory", EINVAL}}, may_lose_name, true, 1},
        {no_file, {{"fsync of the directory", EIO}}, may_lose_name, true, 1},
        {no_file, {{"renameat2", EINVAL}}, "", true, 1},
        {no_file, {{"renameat2", ENOSYS}}, "", true, 1},
        {no_file, {{"renameat2", EOPNOTSUPP}}, "", true, 1},
        {no_file, {{"renameat2", EIO}}, "name cannot be given its name: Input/output", false, 1},
        {no_file, {{"renameat2", EINVAL}, {"linkat", EPERM}}, "only with --force", false, 1},
        {no_file, {{"renameat2", EINVAL}, {"unlinkat", EIO}}, "another name of name", true, 2},
        {no_file, {{"ftruncate", EIO}, {"pread", EIO}, {"linkat", EIO}}, "", true, 1},
        {part, {{"pread", EIO}}, "reading name: Input/output error", false, 1},
        {part, {{"ftruncate", EIO}}, "", true, 1},
        {longer_part,
         {{"ftruncate", EOPNOTSUPP}},
         "name cannot be truncated: Operation not",
         false,
         1},
        {complete, {{"openat", EACCES}}, "name exists already and cannot be read", true, 1},
        {complete, {{"pread", EIO}}, "reading name: Input/output error", true, 1},
        {complete, {{"flock", EIO}, {"pwrite", EIO}, {"renameat2", EIO}}, "", true, 1},
        {overwrite, {{"renameat2", EINVAL}, {"linkat", EPERM}}, "", true, 1},
        {overwrite, {{"renameat", EACCES}}, "name cannot be given its name: Perm", false, 2},
        {appears, {}, "name cannot be given its name: File exists", false, 2},
        {appears, {{"renameat2", EINVAL}}, "given its name: File exists", false, 2},
        {damaged, {}, "what arrived is not what was sent; it was removed", false, 0},
        {damaged, {{"unlinkat", EACCES}}, "not what was sent; remove .name.partial", false, 1},
    }));
    for (const auto& [call, error] : refused.calls) UNSCOPED_INFO(call << ": " << error);
    const Directory directory;
    if (refused.in == part) directory.write(".name.partial", "ne");
    if (refused.in == longer_part) directory.write(".name.partial", "longer");
    if (refused.in == complete) directory.write("name", "new");
    if (refused.in == overwrite) directory.write("name", "old");
    const std::string said = receive_new(directory, refused);
    CHECK(said.empty() == refused.words.empty());
    CHECK_THAT(said, contains(refused.words));
    CHECK((directory.read("name") == "new") == refused.copied);
    CHECK(directory.files() == refused.files);
}

TEST_CASE("rdma_cp: what a file system refuses to the sender is reported with its cause") {
    const Directory directory;
    directory.write("name", "new");
    const std::string path = directory.path() / "name";
    const std::string call = GENERATE("open", "fstat", "pread");
    refusals = {{call, EIO}};
    std::string said;
    try {
        const SourceFile file(path);
        std::array<std::byte, 3> all{};
        file.read(0, all);
    } catch (const FileError& error) {
        said = error.what();
    }
    refusals.clear();
    CHECK(said == (call == "pread" ? "reading " : "") + path + ": Input/output error");
}

TEST_CASE("rdma_cp: a part that is a complete file, too, is not written") {
    const Directory directory; // as after an end between linkat() and unlinkat()
    directory.write("name", "old");
    fs::create_hard_link(directory.path() / "name", directory.path() / ".name.partial");
    CHECK_THROWS_WITH(Target(directory, "name", 3, true), contains("another name of a complete"));
    CHECK(directory.read("name") == "old");
}

TEST_CASE("rdma_cp: the file to send") {
    const Directory directory;
    directory.write("name", "0123");
    const SourceFile file(directory.path() / "name");
    CHECK(file.short_name() == "name");
    CHECK(file.size() == 4);
    std::array<std::byte, 2> part{};
    file.read(1, part);
    CHECK(part[0] == std::byte{'1'});
    file.check_unchanged();
    directory.write("name", "01234");
    CHECK_THROWS_WITH(file.check_unchanged(), contains("was changed while it was copied"));
    directory.write("name", "");
    CHECK_THROWS_WITH(file.read(1, part), contains("became shorter"));
    const auto check_rejected = [&](const std::string& name, const char* why) {
        CHECK_THROWS_WITH(SourceFile(directory.path() / name), contains(why));
    };
    check_rejected("", "is not a regular file");
    check_rejected("none", "No such file");
    REQUIRE(::mkfifo((directory.path() / "pipe").c_str(), 0600) == 0);
    check_rejected("pipe", "is not a regular file");
    directory.write("c1\xc2\x9b"
                    "1m",
                    "");
    check_rejected("c1\xc2\x9b"
                   "1m",
                   "c1..1m: the name has control characters");
}
