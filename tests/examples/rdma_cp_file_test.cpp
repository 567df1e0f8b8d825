// SPDX-License-Identifier: MIT
// The files of rdma_cp: which files a peer can create, and when they get their final names.
#include "file.hpp"

#include <fcntl.h>
#include <sys/file.h>
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
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "support/catch.hpp"

using namespace rdma_cp;
using asyncverbs::support::contains;
namespace fs = std::filesystem;

namespace {

std::string refused_call; // fails with `refusal`
int refusal = 0;

bool is_refused(const char* call) {
    if (refused_call == call) errno = refusal;
    return refused_call == call;
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
extern "C" int flock(int fd, int operation) noexcept {
    if (is_refused("flock")) return -1;
    return static_cast<int>(::syscall(SYS_flock, fd, operation));
}
extern "C" int fsync(int fd) {
    if (is_refused("fsync")) return -1;
    return static_cast<int>(::syscall(SYS_fsync, fd));
}
extern "C" int renameat2(int from, const char* old_name, int to, const char* new_name,
                         unsigned flags) noexcept {
    if (is_refused("renameat2")) return -1;
    return static_cast<int>(::syscall(SYS_renameat2, from, old_name, to, new_name, flags));
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

TEST_CASE("rdma_cp: a call that the file system does not offer is done without, or reported") {
    const Directory directory;
    const auto [call, error] = GENERATE(table<std::string, int>({{"flock", ENOSYS},
                                                                 {"flock", EOPNOTSUPP},
                                                                 {"flock", ENOLCK},
                                                                 {"fsync", EINVAL},
                                                                 {"fsync", EOPNOTSUPP},
                                                                 {"fsync", ENOSYS},
                                                                 {"renameat2", EINVAL},
                                                                 {"renameat2", ENOSYS}}));
    CAPTURE(call, error);
    const bool appears = call == "renameat2" && GENERATE(false, true);
    refused_call = call;
    refusal = error;
    std::string said;
    try {
        Target target(directory, "name", 3);
        target.file.append(bytes("new"));
        if (appears) directory.write("name", "old");
        target.file.finish(digest_of("new"));
    } catch (const FileError& failure) {
        said = failure.what();
    }
    refused_call.clear();
    CHECK((said.find("cannot be given its name") != said.npos) == appears);
    CHECK(directory.read("name") == (appears ? "old" : "new"));
    CHECK(directory.files() == (appears ? 2 : 1));
}

TEST_CASE("rdma_cp: a file that cannot reach the disk is not complete") {
    const Directory directory;
    Target target(directory, "name", 3);
    target.file.append(bytes("new"));
    refused_call = "fsync";
    refusal = EIO;
    CHECK_THROWS_WITH(target.file.finish(digest_of("new")), contains("cannot be written"));
    refused_call.clear();
    CHECK(!fs::exists(directory.path() / "name"));
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
