// SPDX-License-Identifier: MIT
// devices_test COUNT: checks that RDMA_DEVICES names COUNT devices, and sends a message from the
// first to the last of them, which may be the same.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "end.hpp"

namespace {

std::vector<std::string> device_names() {
    const char* const list = std::getenv("RDMA_DEVICES");
    std::istringstream words(list ? list : "");
    std::vector<std::string> names;
    for (std::string name; words >> name;) names.push_back(name);
    return names;
}

asyncverbs::Task<> exchange(End& first, End& last) {
    first.qp.queue_pair().connect(last.qp.queue_pair().local_address());
    last.qp.queue_pair().connect(first.qp.queue_pair().local_address());
    asyncverbs::Operation receive = last.post_recv();
    co_await first.send("from the first device to the last");
    const asyncverbs::Completion received = co_await receive;
    last.expect("from the first device to the last", received);
}

void run(std::size_t count) {
    const std::vector<std::string> names = device_names();
    if (names.size() != count || count == 0) {
        throw std::runtime_error("there are " + std::to_string(names.size()) + " devices");
    }
    asyncverbs::EpollExecutor loop;
    End first(loop, asyncverbs::Context::open(names.front()));
    End last(loop, asyncverbs::Context::open(names.back()));
    loop.run(exchange(first, last));
    std::printf("a message got from %s to %s\n", names.front().c_str(), names.back().c_str());
}

} // namespace

int main(int argc, char** argv) try {
    run(argc == 2 ? std::stoul(argv[1]) : 0);
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
