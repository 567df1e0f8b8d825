// SPDX-License-Identifier: MIT
// rdma_cp: copies files to a peer by RDMA writes, many in flight. It continues what a broken
// connection left, and a file has its name only when it is complete. Read on in this order:
// protocol.hpp, sender.cpp, receiver.cpp, channel.hpp (messages), file.hpp.
#include "copy.hpp"

#include <CLI/CLI.hpp>

#include <csignal>
#include <cstdio>
#include <exception>

namespace {

// `arguments` are the files and the host.
void add_options(CLI::App& app, rdma_cp::Options& options, std::vector<std::string>& arguments) {
    app.description(
        "Copies files to the receiver on HOST, or receives them with -r.\nAn incomplete file is "
        "called .NAME.SIZE-TIME.partial in DIR. If a connection breaks, the sender\ntries again "
        "for some time; later, the same command continues where it ended. A file that has\nchanged "
        "meanwhile is copied from the start. A checksum compares what arrived with what was sent.");
    app.option_defaults()->always_capture_default()->take_last();
    CLI::Option* const receive =
        app.add_option("-r,--receive", options.directory, "Receive files into DIR, without end")
            ->type_name("DIR")
            ->check(CLI::ExistingDirectory);
    app.add_flag("-f,--force", options.overwrite, "Receiver: overwrite existing files");
    app.add_option("-b,--bind", options.bind, "Receiver: listen on this address only");
    app.add_option("-p,--port", options.port, "Port of the receiver")
        ->check(CLI::Range(1u, 65'535u));
    app.add_option("-t,--try", options.patience, "Sender: seconds to try again")
        ->check(CLI::Range(0u, 1'000'000u));
    app.add_option("FILE", arguments, "The files, and last the host of the receiver")
        ->option_text("FILE... HOST")
        ->excludes(receive);
    app.callback([&] {
        if (!options.directory.empty()) return;
        if (arguments.size() < 2) {
            throw CLI::ValidationError("FILE... HOST", "a file and a host are needed, or -r");
        }
        options.files.assign(arguments.begin(), arguments.end() - 1);
        options.host = arguments.back();
    });
}

} // namespace

int main(int argc, char** argv) try {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // show the receiver's lines at once, also in a file
    std::signal(SIGXFSZ, SIG_IGN);            // exceeding a file size limit is an ordinary error
    rdma_cp::Options options;
    std::vector<std::string> arguments;
    CLI::App app;
    add_options(app, options, arguments);
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success& success) {
        return app.exit(success); // --help
    }
    asyncverbs::EpollExecutor loop;
    loop.run(options.directory.empty() ? rdma_cp::send_files(loop, options)
                                       : rdma_cp::receive_files(loop, options));
    return 0;
} catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "error: %s; see --help\n", error.what());
    return 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
