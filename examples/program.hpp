// SPDX-License-Identifier: MIT
// How the programs with a command line begin and end.
#pragma once

#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace program {

/// The main() of a program: reads the options by `add_options(app, options)`, calls `run(options)`
/// and returns the exit status. It is 1 after any error, which has been printed; also if a result
/// or the help could not be written.
template <class Options>
int main(int argc, char** argv, void (*add_options)(CLI::App&, Options&),
         void (*run)(const Options&)) try {
    std::signal(SIGPIPE, SIG_IGN);            // soft-iWARP raises it, too, if a peer has gone
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // show lines at once, also in a file
    Options options;
    CLI::App app;
    app.option_defaults()->always_capture_default()->take_last();
    add_options(app, options);
    try {
        app.parse(argc, argv);
        run(options);
    } catch (const CLI::Success& help) {
        app.exit(help);
    } catch (const CLI::ParseError& error) {
        std::fprintf(stderr, "error: %s; see %s\n", error.what(),
                     app.get_help_ptr()->get_name().c_str());
        return 1;
    }
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return 0;
    throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}

/// A check for options: an empty text is none.
inline std::string not_empty(const std::string& text) {
    return text.empty() ? "must not be empty" : "";
}

} // namespace program
