// SPDX-License-Identifier: MIT
// rdma_cp: a file arrives complete or not at all, even if an end is killed during the transfer.
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
#include <list>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

using asyncverbs::device::await_output;
using asyncverbs::device::await_that;
using asyncverbs::device::can_run_without_descriptors;
using asyncverbs::device::device_address;
using asyncverbs::device::error_of;
using asyncverbs::device::no_server;
using asyncverbs::device::without_ipc_lock;
using asyncverbs::support::contains;
using asyncverbs::support::Process;
namespace fs = std::filesystem;

namespace {

constexpr std::size_t block = 256 * 1024;
constexpr std::size_t large = 32 * block + 1; // more than both ends buffer

std::string contents(const fs::path& path) {
    std::string bytes(fs::file_size(path), '\0'); // byte by byte takes far longer
    std::ifstream(path, std::ios::binary).read(bytes.data(), std::ssize(bytes));
    return bytes;
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
        std::vector<std::uint32_t> words(size / sizeof seed + 1);
        for (std::uint32_t& word : words) word = seed = seed * 1664525 + 1013904223;
        std::ofstream(from(name), std::ios::binary)
            .write(reinterpret_cast<const char*>(words.data()), static_cast<std::streamsize>(size));
    }

    // `wrapper`: a command that runs the receiver.
    Process& start_receiver(const std::vector<std::string>& options = {},
                            std::vector<std::string> wrapper = {}) {
        std::vector<std::string>& arguments = wrapper;
        arguments.insert(arguments.end(), {RDMA_CP, "--receive", to(), "--port", port_});
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

// A call that does not return yet, of a program that env() starts.
class HeldCall {
public:
    HeldCall(std::string variable, fs::path file)
        : variable_(std::move(variable)), file_(std::move(file)) {
        std::ofstream{file_};
    }
    HeldCall(const HeldCall&) = delete;
    HeldCall& operator=(const HeldCall&) = delete;
    ~HeldCall() { release(); }

    std::vector<std::string> env() const {
        return {"env", std::string("LD_PRELOAD=") + SLOW_CALLS, variable_ + "=" + file_.string()};
    }
    void await_call(Process& process) const {
        await_that(process, [this] { return fs::file_size(file_) == 1; });
    }
    void release() const { fs::remove(file_); }

private:
    std::string variable_;
    fs::path file_;
};

// Longer than each end waits before it asks whether the other one is there (2 s).
void pass_some_time() { std::this_thread::sleep_for(std::chrono::seconds(4)); }

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

TEST_CASE("rdma_cp: the sender is killed, and run again", "[rdma_cp][iwarp]") {
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

TEST_CASE("rdma_cp: the sender gives up after the time of --try", "[rdma_cp][iwarp]") {
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

TEST_CASE("rdma_cp: a file that has arrived is copied again with success", "[rdma_cp][iwarp]") {
    Copying copying("7206"); // as after a connection that broke before the last message
    copying.make_file("file", 20 * block);
    copying.start_receiver();
    copy(copying.sender({"file"}));
    CHECK_THAT(copy(copying.sender({"file"})),
               contains("file: continuing at byte 5242880 of 5242880"));
    CHECK(copying.same("file"));
    CHECK(copying.files() == 1);
}

TEST_CASE("rdma_cp: a process that is stopped is not lost", "[rdma_cp][iwarp]") {
    Copying copying("7207");
    copying.make_file("large", large);
    Process& receiver = copying.start_receiver();
    Process sender(copying.sender({"large"}));
    copying.await_part(sender);
    Process& stopped = GENERATE(true, false) ? sender : receiver;
    stopped.signal(SIGSTOP);
    pass_some_time();
    stopped.signal(SIGCONT);
    CHECK(sender.wait() == 0);
    CHECK(sender.error().empty());
    CHECK(receiver.error().empty());
    CHECK(copying.same("large"));
}

TEST_CASE("rdma_cp: a receiver whose disk is slow", "[rdma_cp][iwarp]") {
    Copying copying("7208");
    copying.make_file("file", block);
    copying.make_file("other", 1);
    std::ofstream(copying.to("other")) << "old";
    const HeldCall fsync("SLOW_FSYNC", copying.from("hold"));
    Process& receiver = copying.start_receiver({}, fsync.env());
    std::optional<Process> sender(copying.sender({"file"}));
    fsync.await_call(*sender);

    SECTION("serves others, and is not taken for lost") {
        CHECK_THAT(error_of(copying.sender({"other"})), contains("other exists already"));
        pass_some_time();
        CHECK(sender->is_running());
        fsync.release();
        CHECK(sender->wait() == 0);
        CHECK(sender->error().empty());
    }
    SECTION("answers a sender that asks again, whatever its patience") {
        sender->kill();
        sender->wait();
        Process again(copying.sender({"file"}, "1"));
        await_that(again, [&] { return !again.error().empty(); });
        CHECK_THAT(again.error(), contains("is being received from another sender; trying again"));
        pass_some_time();
        CHECK(again.is_running());
        fsync.release();
        const int status = again.wait();
        INFO(again.error());
        CHECK(status == 0);
    }
    SECTION("finishes while the sender is stopped") {
        sender->signal(SIGSTOP);
        fsync.release();
        await_output(receiver, "file: received");
        pass_some_time();
        sender->signal(SIGCONT);
        CHECK(sender->wait() == 0);
        CHECK(receiver.error().empty());
    }
    CHECK(copying.same("file"));
}

TEST_CASE("rdma_cp: a receiver serves others while it closes the file of a lost sender",
          "[rdma_cp][iwarp]") {
    Copying copying("7211");
    copying.make_file("large", large);
    copying.make_file("other", 1);
    std::ofstream(copying.to("other")) << "old";
    const HeldCall close("SLOW_CLOSE", copying.from("hold"));
    Process& receiver = copying.start_receiver({}, close.env());
    Process sender(copying.sender({"large"}));
    copying.await_part(sender);
    sender.kill();
    sender.wait();
    close.await_call(receiver);
    CHECK_THAT(error_of(copying.sender({"other"})), contains("other exists already"));
}

TEST_CASE("rdma_cp: a receiver that is busy at the end of a copy", "[rdma_cp][iwarp]") {
    Copying copying("7209");
    copying.make_file("file", 1);
    const HeldCall disconnect("SLOW_DISCONNECT", copying.from("hold"));
    copying.start_receiver({}, disconnect.env());
    CHECK(copy(copying.sender({"file"}, "1")).empty());
    CHECK(copying.same("file"));
}

TEST_CASE("rdma_cp: a sender for which there is no locked memory or descriptor is refused",
          "[rdma_cp][iwarp]") {
    const auto [limit, words] = GENERATE(table<std::string, std::string>(
        {{"--memlock=6000000", "limit on locked memory"}, {"--nofile=24", "Too many open files"}}));
    if (limit == "--nofile=24" && !can_run_without_descriptors) return;
    Copying copying("7210");
    const HeldCall fsync("SLOW_FSYNC", copying.from("hold")); // each copy keeps what it has
    std::vector<std::string> wrapper = fsync.env();
    for (const std::string& word : without_ipc_lock({"prlimit", limit})) wrapper.push_back(word);
    Process& receiver = copying.start_receiver({}, wrapper);
    copying.make_file("first", 1);
    Process first(copying.sender({"first"}));
    fsync.await_call(first);
    std::list<Process> others;
    const auto is_refused = [&] {
        if (others.size() < 8) {
            const std::string name = std::to_string(others.size());
            copying.make_file(name, 1);
            others.emplace_back(copying.sender({name}));
        }
        return receiver.error().find(words) != std::string::npos;
    };
    await_that(receiver, is_refused);
    fsync.release();
    CHECK(first.wait() == 0);
    CHECK(copying.same("first"));
    for (Process& each : others) each.wait();
    copying.make_file("next", 1);
    copy(copying.sender({"next"}));
    CHECK(copying.same("next"));
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
