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

/// The length of the text, at most `most`, that cuts no character of UTF-8.
inline std::size_t whole_characters(const std::string& text, std::size_t most) {
    if (text.size() <= most) return text.size();
    while (most > 0 && (text[most] & 0xc0) == 0x80) --most;
    return most;
}

/// Whether a terminal can show the text: it has no control character, neither in ASCII nor in UTF-8
/// (U+0080 to U+009F). A byte that is not UTF-8 is taken for Latin-1.
inline bool is_plain(const std::string& text) {
    const auto continues = [&text](std::size_t at) {
        return at < text.size() && (text[at] & 0xc0) == 0x80;
    };
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = static_cast<unsigned char>(text[i]);
        const std::size_t others = byte >= 0xf0 ? 3 : byte >= 0xe0 ? 2 : byte >= 0xc2 ? 1 : 0;
        std::size_t found = 0;
        while (found < others && continues(i + 1 + found)) ++found;
        const auto next = static_cast<unsigned char>(found > 0 ? text[i + 1] : 0);
        const bool is_overlong = (byte == 0xe0 && next < 0xa0) || (byte == 0xf0 && next < 0x90);
        const bool is_utf8 = others > 0 && found == others && !is_overlong;
        const unsigned char code = is_utf8 && byte == 0xc2 ? next : byte;
        if (code < ' ' || (code >= 0x7f && code < 0xa0)) return false;
        i += is_utf8 ? 1 + others : 1;
    }
    return true;
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
        text.resize(whole_characters(text, (window.ws_col == 0 ? 80u : window.ws_col) - 1u));
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
