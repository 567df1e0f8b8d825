// SPDX-License-Identifier: MIT
// rdma_cp: a file arrives complete or not at all, even if an end is killed during the transfer.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <sys/mount.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::device::device_address;
using asyncverbs::device::error_of;
using asyncverbs::device::no_server;
using asyncverbs::support::contains;
using asyncverbs::support::Process;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t block = 256 * 1024;
constexpr std::size_t large = 32 * block + 1; // more than both ends buffer

std::string contents(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// Files to send, a directory to receive them, and a receiver.
class Copying {
public:
    explicit Copying(std::string port) : port_(std::move(port)) {
        std::string name = fs::temp_directory_path() / "rdma_cp_device_test.XXXXXX";
        if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        path_ = name;
        fs::create_directory(path_ / "from");
        fs::create_directory(to());
    }
    Copying(const Copying&) = delete;
    Copying& operator=(const Copying&) = delete;
    ~Copying() {
        receiver_.reset();
        fs::remove_all(path_);
    }

    fs::path from(const std::string& name) const { return path_ / "from" / name; }
    fs::path to(const std::string& name = {}) const { return path_ / "to" / name; }

    void make_file(const std::string& name, std::size_t size, std::uint32_t seed = 1) const {
        std::string bytes(size, '\0');
        for (char& byte : bytes)
            byte = static_cast<char>((seed = seed * 1664525 + 1013904223) >> 24);
        std::ofstream(from(name), std::ios::binary) << bytes;
    }

    Process& start_receiver(const std::vector<std::string>& options = {}) {
        std::vector<std::string> arguments{RDMA_CP, "--receive", to(), "--port", port_};
        arguments.insert(arguments.end(), options.begin(), options.end());
        receiver_.emplace(arguments);
        await_output(*receiver_, "port");
        return *receiver_;
    }
    void kill_receiver() {
        receiver_->kill();
        receiver_->wait();
    }

    std::vector<std::string> sender(const std::vector<std::string>& names,
                                    const std::string& patience = "60") const {
        std::vector<std::string> arguments{RDMA_CP, "--port", port_, "--try", patience};
        for (const std::string& name : names) arguments.push_back(from(name));
        arguments.push_back(device_address());
        return arguments;
    }

    // Waits until a part of the file has arrived.
    void await_part(Process& sender) const {
        await_that(sender, [this] {
            for (const fs::directory_entry& entry : fs::directory_iterator(to())) {
                std::error_code gone;
                const std::uintmax_t size = entry.file_size(gone);
                if (!gone && entry.path().extension() == ".partial") return size > 4 * block;
            }
            return false;
        });
    }

    bool same(const std::string& name) const { return contents(from(name)) == contents(to(name)); }
    std::ptrdiff_t files() const {
        return std::distance(fs::directory_iterator(to()), fs::directory_iterator());
    }

private:
    std::string port_;
    fs::path path_;
    std::optional<Process> receiver_;
};

// Runs a sender that must succeed, and returns its standard error.
std::string copy(const std::vector<std::string>& command) {
    Process sender(command);
    CHECK(sender.wait() == 0);
    return sender.error();
}

} // namespace

TEST_CASE("rdma_cp: files of any size", "[rdma_cp][iwarp]") {
    Copying copying("7200");
    copying.make_file("empty", 0);
    copying.make_file("byte", 1);
    copying.make_file("block", block);
    copying.make_file("more", 20 * block + 12'345);
    copying.start_receiver();
    Process sender(copying.sender({"empty", "byte", "block", "more"}));
    INFO(sender.output() << sender.error());
    CHECK(sender.wait() == 0);
    for (const char* name : {"empty", "byte", "block", "more"}) CHECK(copying.same(name));
    CHECK(copying.files() == 4);
    CHECK_THAT(sender.output(), contains("more: 5255225 bytes in"));
}

TEST_CASE("rdma_cp: the receiver is killed, and started again", "[rdma_cp][iwarp]") {
    Copying copying("7201");
    copying.make_file("large", large);
    copying.start_receiver();
    Process sender(copying.sender({"large"}));
    copying.await_part(sender);
    copying.kill_receiver();
    CHECK(!fs::exists(copying.to("large")));
    copying.start_receiver();
    INFO(sender.output() << sender.error());
    CHECK(sender.wait() == 0);
    CHECK_THAT(sender.error(), contains("trying again") && contains("large: continuing at byte"));
    CHECK(copying.same("large"));
    CHECK(copying.files() == 1);
}

TEST_CASE("rdma_cp: the sender is killed, and run again", "[rdma_cp]") {
    const bool same_file = GENERATE(true, false);
    Copying copying("7202");
    copying.make_file("large", large);
    copying.start_receiver();
    {
        Process killed(copying.sender({"large"}));
        copying.await_part(killed);
        killed.kill();
        CHECK(killed.wait() == 128 + SIGKILL);
    }
    CHECK(!fs::exists(copying.to("large")));
    if (!same_file) copying.make_file("large", large, 2);
    const std::string error = copy(copying.sender({"large"}));
    CHECK((error.find("large: continuing at byte") != std::string::npos) == same_file);
    CHECK(copying.same("large"));
}

TEST_CASE("rdma_cp: the sender gives up after the time of --try", "[rdma_cp]") {
    Copying copying("7203");
    copying.make_file("large", large);
    copying.start_receiver();
    Process sender(copying.sender({"large"}, "1"));
    copying.await_part(sender);
    copying.kill_receiver();
    CHECK(sender.wait() == 1);
    CHECK_THAT(sender.error(), contains("the receiver keeps what it has: run this again"));
}

TEST_CASE("rdma_cp: both ends name the cause of an error", "[rdma_cp][iwarp]") {
    Copying copying("7204");
    copying.make_file("file", 1000);
    CHECK_THAT(error_of(copying.sender({"file"})), contains(no_server()));
    Process& receiver = copying.start_receiver();
    std::ofstream(copying.to("file")) << "old";
    CHECK_THAT(error_of(copying.sender({"file"})), contains("the receiver: file exists already"));
    CHECK_THAT(receiver.error(), contains("file exists already"));
    CHECK_THAT(error_of(copying.sender({"none"})), contains("none: No such file or directory"));
    copying.make_file("next", 1000);
    CHECK_THAT(error_of(copying.sender({"none", "file", "next"})),
               contains("2 of 3 files were not copied"));
    CHECK(copying.same("next"));
    CHECK_THAT(error_of({RDMA_CP, "file"}), contains("a file and a host are needed"));
    CHECK_THAT(error_of({RDMA_CP, "-r", ".", "file"}), contains("--receive excludes FILE"));
    CHECK_THAT(error_of({RDMA_CP, "--port=0", "a", "b"}), contains("--port: Value 0 not in range"));
    copying.kill_receiver();
    copying.start_receiver({"--force"});
    copy(copying.sender({"file"}));
    CHECK(copying.same("file"));
}

TEST_CASE("rdma_cp: a file that has arrived is copied again with success", "[rdma_cp]") {
    Copying copying("7206"); // as after a connection that broke before the last message
    copying.make_file("file", 20 * block);
    copying.start_receiver();
    copy(copying.sender({"file"}));
    CHECK_THAT(copy(copying.sender({"file"})),
               contains("file: continuing at byte 5242880 of 5242880"));
    CHECK(copying.same("file"));
    CHECK(copying.files() == 1);
}

TEST_CASE("rdma_cp: a full disk", "[rdma_cp][iwarp]") {
    Copying copying("7205");
    copying.make_file("large", large);
    if (::mount("none", copying.to().c_str(), "tmpfs", 0, "size=2m") != 0) {
        WARN("skipped: no file system can be mounted here: " << std::strerror(errno));
        return;
    }
    Process& receiver = copying.start_receiver();
    CHECK_THAT(error_of(copying.sender({"large"})),
               contains("the receiver: large cannot be written: No space left on device"));
    CHECK(!fs::exists(copying.to("large")));
    CHECK(receiver.is_running());
    copying.kill_receiver();
    ::umount(copying.to().c_str());
}
