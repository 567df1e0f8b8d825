// SPDX-License-Identifier: MIT
// A child process: started with arguments; collects its output and exit status. The destructor
// kills it if it still runs.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

extern char** environ;

namespace asyncverbs::support {

class Process {
public:
    // `error_fd`: the descriptor for standard error; by default error() returns it.
    explicit Process(std::vector<std::string> arguments, int error_fd = -1)
        : output_(make_file("stdout")), error_(make_file("stderr")) {
        std::vector<char*> argv;
        for (std::string& argument : arguments) argv.push_back(argument.data());
        argv.push_back(nullptr);
        posix_spawn_file_actions_t actions;
        ::posix_spawn_file_actions_init(&actions);
        ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
        ::posix_spawn_file_actions_adddup2(&actions, output_, STDOUT_FILENO);
        ::posix_spawn_file_actions_adddup2(&actions, error_fd < 0 ? error_ : error_fd,
                                           STDERR_FILENO);
        const int error = ::posix_spawnp(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
        ::posix_spawn_file_actions_destroy(&actions);
        if (error != 0) {
            close_files();
            throw std::system_error(error, std::generic_category(), arguments[0]);
        }
        pid_fd_ = static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0));
    }
    Process(const Process&) = delete;
    Process& operator=(const Process&) = delete;
    ~Process() {
        kill();
        wait(-1);
        close_files();
    }

    void kill() noexcept { signal(SIGKILL); }

    void signal(int number) noexcept {
        if (!ended_) ::kill(pid_, number);
    }

    // The exit status; 128 + N if signal N ended it; -1 if it still runs after this time (-1: no
    // limit).
    int wait(int milliseconds = 120'000) {
        if (!ended_) {
            pollfd waited{pid_fd_, POLLIN, 0};
            if (::poll(&waited, 1, milliseconds) != 1) return -1;
            int status = 0;
            ::waitpid(pid_, &status, 0);
            ended_ = true;
            status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        return status_;
    }

    bool is_running() { return wait(0) == -1; }

    std::string output() const { return contents(output_); }
    std::string error() const { return contents(error_); }

private:
    static int make_file(const char* name) {
        const int fd = ::memfd_create(name, MFD_CLOEXEC);
        if (fd < 0) throw std::system_error(errno, std::generic_category(), "memfd_create");
        return fd;
    }

    static std::string contents(int fd) {
        std::string text;
        std::array<char, 4096> part;
        for (;;) {
            const ssize_t count =
                ::pread(fd, part.data(), part.size(), static_cast<off_t>(text.size()));
            if (count <= 0) return text;
            text.append(part.data(), static_cast<std::size_t>(count));
        }
    }

    void close_files() noexcept {
        ::close(output_);
        ::close(error_);
        if (pid_fd_ >= 0) ::close(pid_fd_);
    }

    int output_;
    int error_;
    pid_t pid_ = -1;
    int pid_fd_ = -1;
    bool ended_ = false;
    int status_ = -1;
};

} // namespace asyncverbs::support
