// SPDX-License-Identifier: MIT
// rdma_cp: files arrive whole or not at all, whoever is killed meanwhile.
#include "support/catch.hpp"
#include "support/process.hpp"

#include "device/programs.hpp"

#include <sys/mount.h>

#include <cerrno>
#include <chrono>
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
#include <thread>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::device::device_address;
using asyncverbs::support::contains;
using asyncverbs::support::Process;
namespace fs = std::filesystem;

namespace {

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
        std::vector<std::uint32_t> words(size / 4 + 1);
        for (std::uint32_t& word : words) word = seed = seed * 1664525 + 1013904223;
        std::ofstream(from(name), std::ios::binary)
            .write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(size));
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

    std::vector<std::string> sender(const std::vector<std::string>& names) const {
        std::vector<std::string> arguments{RDMA_CP, "--port", port_, "--try", "60"};
        for (const std::string& name : names) arguments.push_back(from(name));
        arguments.push_back(device_address());
        return arguments;
    }

    bool same(const std::string& name) const { return read(from(name)) == read(to(name)); }

    // So much has come of a file that is not whole.
    std::uint64_t partial_size() const {
        for (const fs::directory_entry& entry : fs::directory_iterator(to())) {
            std::error_code gone;
            const std::uint64_t size = entry.file_size(gone);
            if (!gone && entry.path().extension() == ".partial") return size;
        }
        return 0;
    }
    std::size_t files() const {
        return static_cast<std::size_t>(
            std::distance(fs::directory_iterator(to()), fs::directory_iterator()));
    }

private:
    static std::string read(const fs::path& path) {
        std::string bytes(fs::file_size(path), '\0');
        std::ifstream(path, std::ios::binary)
            .read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        return bytes;
    }

    std::string port_;
    fs::path path_;
    std::optional<Process> receiver_;
};

constexpr std::size_t block = 256 * 1024;
constexpr std::size_t large = 64 * block + 1;

} // namespace

TEST_CASE("rdma_cp: files of any size", "[rdma_cp]") {
    Copying copying("7200");
    const std::vector<std::string> names{"empty", "byte", "block", "more"};
    copying.make_file("empty", 0);
    copying.make_file("byte", 1);
    copying.make_file("block", block);
    copying.make_file("more", 20 * block + 12'345);
    copying.start_receiver();
    Process sender(copying.sender(names));
    INFO(sender.output() << sender.error());
    CHECK(sender.wait() == 0);
    for (const std::string& name : names) CHECK(copying.same(name));
    CHECK(copying.files() == names.size());
    CHECK_THAT(sender.output(), contains("more: 5255225 bytes in"));
}

TEST_CASE("rdma_cp: the receiver is killed, and started again", "[rdma_cp]") {
    Copying copying("7201");
    copying.make_file("large", large);
    copying.start_receiver();
    Process sender(copying.sender({"large"}));
    await_that(sender, [&] { return copying.partial_size() > 4 * block; });
    copying.kill_receiver();
    CHECK(!fs::exists(copying.to("large")));
    copying.start_receiver();
    INFO(sender.output() << sender.error());
    CHECK(sender.wait() == 0);
    CHECK_THAT(sender.error(), contains("trying again"));
    CHECK_THAT(sender.error(), contains("large: continuing at byte"));
    CHECK(copying.same("large"));
    CHECK(copying.files() == 1);
}

TEST_CASE("rdma_cp: the sender is killed, and run again", "[rdma_cp]") {
    Copying copying("7202");
    copying.make_file("large", large);
    copying.start_receiver();
    {
        Process killed(copying.sender({"large"}));
        await_that(killed, [&] { return copying.partial_size() > 4 * block; });
        killed.kill();
        CHECK(killed.wait() == 128 + SIGKILL);
    }
    CHECK(!fs::exists(copying.to("large")));
    SECTION("the file is the same") {
        Process sender(copying.sender({"large"}));
        INFO(sender.error());
        CHECK(sender.wait() == 0);
        CHECK_THAT(sender.error(), contains("large: continuing at byte"));
    }
    SECTION("the file is another one") {
        copying.make_file("large", large, 2);
        Process sender(copying.sender({"large"}));
        INFO(sender.error());
        CHECK(sender.wait() == 0);
        CHECK_THAT(sender.error(), !contains("continuing"));
    }
    CHECK(copying.same("large"));
}

TEST_CASE("rdma_cp: a receiver that stays away is waited for as long as is said", "[rdma_cp]") {
    Copying copying("7203");
    copying.make_file("large", large);
    copying.start_receiver();
    std::vector<std::string> arguments = copying.sender({"large"});
    arguments.insert(arguments.begin() + 1, {"--try", "1"});
    arguments.erase(arguments.begin() + 5, arguments.begin() + 7); // the longer one
    Process sender(arguments);
    await_that(sender, [&] { return copying.partial_size() > 4 * block; });
    copying.kill_receiver();
    CHECK(sender.wait() == 1);
    CHECK_THAT(sender.error(), contains("what is there is kept: run this again"));
}

TEST_CASE("rdma_cp: what is wrong is said, at both ends", "[rdma_cp]") {
    Copying copying("7204");
    copying.make_file("file", 1000);
    const auto error_of = [](const std::vector<std::string>& arguments) {
        Process process(arguments);
        CHECK(process.wait() == 1);
        return process.error();
    };
    CHECK_THAT(error_of(copying.sender({"file"})), contains("nobody listens"));
    Process& receiver = copying.start_receiver();
    std::ofstream(copying.to("file")) << "old";
    CHECK_THAT(error_of(copying.sender({"file"})), contains("the receiver: file exists already"));
    CHECK_THAT(receiver.error(), contains("file exists already"));
    CHECK_THAT(error_of(copying.sender({"none"})), contains("none: No such file or directory"));
    CHECK_THAT(error_of({RDMA_CP, "file"}), contains("a file and a host are needed"));
    CHECK_THAT(error_of({RDMA_CP, "-r", ".", "file"}), contains("unexpected argument file"));
    CHECK_THAT(error_of({RDMA_CP, "--port=0", "a", "b"}), contains("--port takes a number from 1"));
    CHECK_THAT(error_of({RDMA_CP, "--nonsense"}), contains("unknown option --nonsense"));
    copying.kill_receiver();
    copying.start_receiver({"--force"});
    Process sender(copying.sender({"file"}));
    CHECK(sender.wait() == 0);
    CHECK(copying.same("file"));
}

TEST_CASE("rdma_cp: a full disk", "[rdma_cp]") {
    Copying copying("7205");
    copying.make_file("large", large);
    if (::mount("none", copying.to().c_str(), "tmpfs", 0, "size=2m") != 0) {
        WARN("skipped: no file system can be mounted here: " << std::strerror(errno));
        return;
    }
    Process& receiver = copying.start_receiver();
    {
        Process sender(copying.sender({"large"}));
        INFO(sender.error());
        CHECK(sender.wait() == 1);
        CHECK_THAT(sender.error(),
                   contains("the receiver: large cannot be written: No space left on device"));
        CHECK(!fs::exists(copying.to("large")));
        CHECK(receiver.is_running());
    }
    copying.kill_receiver();
    ::umount(copying.to().c_str());
}
