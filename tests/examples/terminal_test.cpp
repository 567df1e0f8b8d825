// SPDX-License-Identifier: MIT
// The line of progress, on a terminal.
#include "terminal.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <string>

#include "support/catch.hpp"

namespace {

// A terminal of this width as standard error, while this object lives.
class Terminal {
public:
    explicit Terminal(unsigned short columns)
        : saved_(::dup(STDERR_FILENO)), terminal_(::posix_openpt(O_RDWR | O_NOCTTY)) {
        REQUIRE(::grantpt(terminal_) == 0);
        REQUIRE(::unlockpt(terminal_) == 0);
        end_ = ::open(::ptsname(terminal_), O_RDWR | O_NOCTTY);
        winsize window{};
        window.ws_col = columns;
        REQUIRE(::ioctl(end_, TIOCSWINSZ, &window) == 0);
        ::dup2(end_, STDERR_FILENO);
    }
    Terminal(const Terminal&) = delete;
    Terminal& operator=(const Terminal&) = delete;
    ~Terminal() {
        ::dup2(saved_, STDERR_FILENO);
        for (const int fd : {saved_, end_, terminal_}) ::close(fd);
    }

    // What was written, once. The kernel may pass it on in several parts.
    std::string written() const {
        constexpr char end_of_text = '\x04';
        REQUIRE(::write(end_, &end_of_text, 1) == 1);
        std::string text;
        std::array<char, 1000> part;
        while (text.empty() || text.back() != end_of_text) {
            const ssize_t size = ::read(terminal_, part.data(), part.size());
            REQUIRE(size > 0);
            text.append(part.data(), static_cast<std::size_t>(size));
        }
        text.pop_back();
        return text;
    }

private:
    int saved_;
    int terminal_;
    int end_ = -1;
};

std::string shown_on(unsigned short columns, const std::string& text) {
    const Terminal terminal(columns);
    terminal::StatusLine line;
    line.show(text);
    line.clear();
    return terminal.written();
}

} // namespace

TEST_CASE("terminal: a line of progress does not wrap, and is erased") {
    const std::string digits = "0123456789012345678901234567890123456789";
    CHECK(shown_on(80, digits) == "\r" + digits + "\033[K\r\033[K");
    CHECK(shown_on(10, digits) == "\r012345678\033[K\r\033[K");
    CHECK(shown_on(10, "\u65e5\u672c\u8a9e\u65e5") == "\r\u65e5\u672c\u8a9e\033[K\r\033[K");
    CHECK(shown_on(9, "\u65e5\u672c\u8a9e") == "\r\u65e5\u672c\033[K\r\033[K"); // no half of one
    CHECK(shown_on(0, std::string(200, 'x')) == "\r" + std::string(79, 'x') + "\033[K\r\033[K");
}
