// SPDX-License-Identifier: MIT
// What the programs with progress and peers need of a terminal.
#pragma once

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>

namespace terminal {

/// Bytes of a peer, fit for a terminal: a dot for each that is not a printable ASCII character.
inline std::string printable(std::string text) {
    std::replace_if(text.begin(), text.end(), [](char c) { return c < ' ' || c > '~'; }, '.');
    return text;
}

/// A line of progress, rewritten by each show() and erased in the end. Without a terminal on
/// standard error it shows nothing.
class StatusLine {
public:
    StatusLine() = default;
    StatusLine(const StatusLine&) = delete;
    StatusLine& operator=(const StatusLine&) = delete;
    ~StatusLine() { clear(); }

    bool on_terminal() const noexcept { return on_terminal_; }

    /// Cuts the text to the width of the terminal: a line that wraps cannot be rewritten.
    void show(std::string text) {
        if (!on_terminal_) return;
        winsize window{};
        ::ioctl(STDERR_FILENO, TIOCGWINSZ, &window);
        // A character takes at most as many columns as it has bytes in UTF-8.
        std::size_t length = (window.ws_col == 0 ? 80u : window.ws_col) - 1u;
        if (length < text.size()) {
            while (length > 0 && (text[length] & 0xc0) == 0x80) --length; // inside a character
            text.resize(length);
        }
        std::fprintf(stderr, "\r%s\033[K", text.c_str());
        shown_ = true;
    }

    void clear() {
        if (shown_) std::fputs("\r\033[K", stderr);
        shown_ = false;
    }

private:
    bool on_terminal_ = ::isatty(STDERR_FILENO) == 1;
    bool shown_ = false;
};

} // namespace terminal
