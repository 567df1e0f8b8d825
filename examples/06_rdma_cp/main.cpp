// SPDX-License-Identifier: MIT
// rdma_cp: copies files to a peer by RDMA writes, many in flight. It continues what a broken
// connection left, and a file has its name only when it is complete. Read on in this order:
// protocol.hpp, sender.cpp, receiver.cpp, channel.hpp (messages), file.hpp, background.hpp
// (threads).
#include "../program.hpp"
#include "copy.hpp"

#include <csignal>

namespace {

void add_options(CLI::App& app, rdma_cp::Options& options) {
    app.description(
        "Copies files to the receiver on HOST, or receives them with -r.\nAn incomplete file is "
        "called .NAME.partial in DIR, or has a number for a long NAME; it may be\nremoved. If a "
        "connection breaks, the sender tries again for some time. Later, the same\ncommand "
        "continues it, if the file still begins so. A checksum compares both files.");
    CLI::Option* const receive =
        app.add_option("-r,--receive", options.directory, "Receive files into DIR, without end")
            ->type_name("DIR")
            ->check(CLI::ExistingDirectory);
    app.add_flag("-f,--force", options.overwrite, "Receiver: overwrite existing files");
    app.add_option("-b,--bind", options.bind, "Receiver: listen on this address only");
    app.add_option("-p,--port", options.port, "Port of the receiver")
        ->check(CLI::Range(1u, 65'535u));
    app.add_option("-t,--try", options.patience,
                   "Sender: seconds to try again while no receiver answers")
        ->check(CLI::Range(0u, 1'000'000u));
    app.add_option("FILE", options.files, "The files, and last the host of the receiver")
        ->option_text("FILE... HOST")
        ->excludes(receive);
    app.callback([&options] {
        if (!options.directory.empty()) return;
        if (options.files.size() < 2) {
            throw CLI::ValidationError("FILE... HOST", "a file and a host are needed, or -r");
        }
        options.host = options.files.back();
        options.files.pop_back();
    });
}

void run(const rdma_cp::Options& options) {
    std::signal(SIGXFSZ, SIG_IGN); // exceeding a file size limit is an ordinary error
    asyncverbs::EpollExecutor loop;
    loop.run(options.directory.empty() ? rdma_cp::send_files(loop, options)
                                       : rdma_cp::receive_files(loop, options));
}

} // namespace

int main(int argc, char** argv) { return program::main(argc, argv, add_options, run); }
