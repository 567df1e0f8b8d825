// SPDX-License-Identifier: MIT
// The files of rdma_cp: which files a peer can create, and when they get their final names.
#include "file.hpp"

#include <sys/resource.h>
#include <unistd.h>

#include <array>
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

PartialFile receive(const Directory& directory, const Offer& offer, bool overwrite = false) {
    return PartialFile(directory.path(), offer, overwrite);
}

} // namespace

TEST_CASE("rdma_cp: a file gets its name when it is complete") {
    const Directory directory;
    {
        PartialFile file = receive(directory, {"name", 10, 7});
        file.append(bytes("01234"));
        CHECK(!fs::exists(directory.path() / "name"));
        CHECK(directory.read(".name.10-7.partial") == "01234");
        file.append(bytes("56789"));
        CHECK(!fs::exists(directory.path() / "name"));
        file.finish(digest_of("0123456789"));
    }
    CHECK(directory.read("name") == "0123456789");
    CHECK(directory.files() == 1);
}

TEST_CASE("rdma_cp: a partial file is continued, unless it belongs to another file") {
    const Directory directory;
    receive(directory, {"name", 10, 7}).append(bytes("01234"));
    CHECK(receive(directory, {"name", 10, 8}).size() == 0);
    CHECK(receive(directory, {"name", 11, 7}).size() == 0);
    CHECK(receive(directory, {"other", 10, 7}).size() == 0);
    PartialFile file = receive(directory, {"name", 10, 7});
    CHECK(file.size() == 5);
    file.append(bytes("56789"));
    file.finish(digest_of("0123456789"));
    CHECK(directory.read("name") == "0123456789");
}

TEST_CASE("rdma_cp: a file with another checksum is removed") {
    const Directory directory;
    PartialFile file = receive(directory, {"name", 3, 7});
    file.append(bytes("abd"));
    CHECK_THROWS_WITH(file.finish(digest_of("abc")), contains("not what was sent"));
    CHECK(directory.files() == 0);
}

TEST_CASE("rdma_cp: a partial file that is too long is discarded") {
    const Directory directory;
    directory.write(".name.3-7.partial", "abcd");
    CHECK(receive(directory, {"name", 3, 7}).size() == 0);
}

TEST_CASE("rdma_cp: one sender at a time") {
    const Directory directory;
    const PartialFile first = receive(directory, {"name", 3, 7});
    CHECK_THROWS_AS(receive(directory, {"name", 3, 7}), FileBusy);
    CHECK_NOTHROW(receive(directory, {"other", 3, 7}));
}

TEST_CASE("rdma_cp: an existing file is overwritten only on request") {
    const Directory directory;
    directory.write("name", "old");
    CHECK_THROWS_WITH(receive(directory, {"name", 3, 7}), contains("name exists already"));
    CHECK(directory.files() == 1);
    PartialFile file = receive(directory, {"name", 3, 7}, true);
    file.append(bytes("new"));
    CHECK(directory.read("name") == "old");
    file.finish(digest_of("new"));
    CHECK(directory.read("name") == "new");
}

TEST_CASE("rdma_cp: a file that appears during the transfer is not overwritten") {
    const Directory directory;
    PartialFile file = receive(directory, {"name", 3, 7});
    file.append(bytes("new"));
    directory.write("name", "old");
    CHECK_THROWS_WITH(file.finish(digest_of("new")), contains("File exists"));
    CHECK(directory.read("name") == "old");
}

TEST_CASE("rdma_cp: no name leads out of the directory") {
    const Directory directory;
    for (const char* name : {"../name", "/name", "a/b", "..", "."}) {
        CHECK_THROWS_WITH(receive(directory, {name, 3, 7}),
                          contains("not in the target directory"));
    }
    for (const std::string& name : {std::string(), std::string("a\0b", 3), std::string(201, 'x')}) {
        CHECK_THROWS_WITH(receive(directory, {name, 3, 7}), contains("cannot have such a name"));
    }
    fs::create_symlink("/dev/null", directory.path() / ".name.3-7.partial");
    CHECK_THROWS_WITH(receive(directory, {"name", 3, 7}), contains("cannot be created"));
}

TEST_CASE("rdma_cp: errors of the file system are reported") {
    const Directory directory;
    PartialFile file = receive(directory, {"name", 10, 7});
    rlimit old{};
    ::getrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit small{4, old.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &small);
    std::string said;
    try {
        file.append(bytes("0123456789"));
    } catch (const FileError& error) {
        said = error.what();
    }
    ::setrlimit(RLIMIT_FSIZE, &old);
    CHECK(said == "name cannot be written: File too large");
    CHECK_THROWS_WITH(PartialFile("/nowhere", {"name", 10, 7}, false), contains("No such file"));
}

TEST_CASE("rdma_cp: the file to send") {
    const Directory directory;
    directory.write("name", "0123");
    const SourceFile file(directory.path() / "name");
    CHECK(file.offer().name == "name");
    CHECK(file.offer().size == 4);
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
    const std::string long_name(201, 'x');
    directory.write(long_name, "");
    check_rejected(long_name, "the name is too long");
    directory.write("two\nlines", "");
    check_rejected("two\nlines", "control characters");
}
