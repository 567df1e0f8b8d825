// SPDX-License-Identifier: MIT
// rdma_cp: copies files to a peer by RDMA writes, many in flight. What a broken connection leaves
// is continued, and nobody takes a part for the whole.
#include "receiver.hpp"
#include "sender.hpp"

#include <asyncverbs/executor/epoll_executor.hpp>

#include <getopt.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>

namespace {

constexpr const char* help =
    R"(Usage: rdma_cp [-p PORT] FILE... HOST        copy files to the receiver on HOST
       rdma_cp -r DIR [-f] [-p PORT] [-b ADDRESS]   receive files into DIR

A file that is not whole yet is called .NAME.SIZE-TIME.partial in DIR. When a connection breaks, the
sender tries again for some time; later, the same command goes on where it ended. A file that was
changed meanwhile is copied anew. What has come is compared with what was sent by a checksum.

  -r, --receive=DIR    be the receiver, of any number of senders
  -f, --force          receiver: overwrite files that exist
  -b, --bind=ADDRESS   receiver: listen on this address only
  -p, --port=PORT      port of the receiver (7472)
  -t, --try=SECONDS    sender: how long to try again (60)
  -h, --help           print this text
)";

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Options {
    bool help = false;
    rdma_cp::SenderOptions sender;
    rdma_cp::ReceiverOptions receiver; // has a directory: be it
};

unsigned long number(const char* name, unsigned long low, unsigned long high) {
    char* end = nullptr;
    const unsigned long value = std::strtoul(optarg, &end, 10);
    if (optarg[0] < '0' || optarg[0] > '9' || *end != '\0' || value < low || value > high) {
        throw UsageError(std::string(name) + " takes a number from " + std::to_string(low) +
                         " to " + std::to_string(high) + ", not \"" + optarg + "\"");
    }
    return value;
}

void take_arguments(Options& options, char** first, char** last) {
    if (!options.receiver.directory.empty()) {
        if (first != last) throw UsageError(std::string("unexpected argument ") + *first);
        return;
    }
    if (last - first < 2) throw UsageError("a file and a host are needed, or --receive");
    options.sender.files.assign(first, last - 1);
    options.sender.host = *(last - 1);
}

Options parse(int argc, char** argv) {
    constexpr option long_options[] = {{"receive", required_argument, nullptr, 'r'},
                                       {"force", no_argument, nullptr, 'f'},
                                       {"bind", required_argument, nullptr, 'b'},
                                       {"port", required_argument, nullptr, 'p'},
                                       {"try", required_argument, nullptr, 't'},
                                       {"help", no_argument, nullptr, 'h'},
                                       {nullptr, 0, nullptr, 0}};
    Options options;
    options.sender.port = options.receiver.port = "7472";
    opterr = 0;
    for (;;) {
        switch (getopt_long(argc, argv, ":r:fb:p:t:h", long_options, nullptr)) {
        case -1:
            take_arguments(options, argv + optind, argv + argc);
            return options;
        case 'r':
            options.receiver.directory = optarg;
            if (options.receiver.directory.empty()) throw UsageError("the directory is empty");
            break;
        case 'f':
            options.receiver.overwrite = true;
            break;
        case 'b':
            options.receiver.bind = optarg;
            break;
        case 'p':
            options.sender.port = options.receiver.port =
                std::to_string(number("--port", 1, 65'535));
            break;
        case 't':
            options.sender.patience = std::chrono::seconds(number("--try", 0, 1'000'000));
            break;
        case 'h':
            options.help = true;
            return options;
        case ':':
            throw UsageError(std::string(argv[optind - 1]) + " takes a value");
        default:
            throw UsageError(std::string("unknown option ") + argv[optind - 1]);
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0); // a receiver's lines are news, also in a file
    std::signal(SIGXFSZ, SIG_IGN);            // a limit on files is an error like a full disk
    try {
        const Options options = parse(argc, argv);
        if (options.help) {
            std::fputs(help, stdout);
            return 0;
        }
        asyncverbs::EpollExecutor loop;
        const bool receives = !options.receiver.directory.empty();
        loop.run(receives ? rdma_cp::receive_files(loop, options.receiver)
                          : rdma_cp::send_files(loop, options.sender));
        return 0;
    } catch (const UsageError& error) {
        std::fprintf(stderr, "error: %s; see --help\n", error.what());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
    }
    return 1;
}
