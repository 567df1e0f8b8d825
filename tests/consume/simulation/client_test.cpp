// SPDX-License-Identifier: MIT
// Tests of the client. Each scenario is a process, so a failed check may end it.
#include "client.hpp"

#include <asyncverbs/coro/scope.hpp>
#include <asyncverbs/simulation/simulated_verbs.hpp>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string_view>

using namespace asyncverbs;
using simulated::SimulatedVerbs;

namespace {

void check(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

// Answers one request, by the next number.
Task<> serve(AsyncQp& qp, const MemoryRegion& memory) {
    co_await qp.recv(memory.slice(0, 4));
    std::uint32_t number = 0;
    std::memcpy(&number, memory.bytes().data(), 4);
    ++number;
    std::memcpy(memory.bytes().data(), &number, 4);
    co_await qp.send(memory.slice(0, 4));
}

// A client and a server, connected to each other.
struct Fixture {
    Fixture() {
        server.queue_pair().init();
        client.queue_pair().connect(server.queue_pair().local_address());
        server.queue_pair().connect(client.queue_pair().local_address());
        scope.spawn(serve(server, memory));
    }

    SimulatedVerbs verbs;
    EpollExecutor loop;
    Context context = Context::open();
    ProtectionDomain domain{context};
    MemoryRegion memory = MemoryRegion::allocate(domain, 4);
    Router router = Router::create(context, 32, loop);
    AsyncQp server{router, domain};
    Client client{loop, context};
    Scope scope;
};

void answered() {
    Fixture f;
    check(f.loop.run(f.client.ask(41)) == 42, "the answer is the next number");
}

void delayed() {
    Fixture f;
    std::uint32_t answer = 0;
    const auto ask = [&]() -> Task<> { answer = co_await f.client.ask(1); };
    f.verbs.hold_delivery();
    f.scope.spawn(ask());
    while (f.loop.run_once()) continue;
    check(answer == 0, "there is no answer without a request");
    check(f.verbs.deliver() == 1, "the request arrives");
    while (f.loop.run_once()) continue;
    f.verbs.release_delivery(); // the answer arrives
    while (f.loop.run_once()) continue;
    check(answer == 2, "the client waits for the answer");
}

void repeated() {
    Fixture f;
    f.verbs.fail("ibv_post_send", {.error = ENOMEM, .times = 2});
    check(f.loop.run(f.client.ask(7)) == 8, "the request is repeated");
    check(f.verbs.calls("ibv_post_send") == 4, "three times, and there is one answer");
}

void unanswered() {
    Fixture f;
    std::error_code error;
    const auto ask = [&]() -> Task<> {
        try {
            co_await f.client.ask(1);
        } catch (const std::system_error& failure) {
            error = failure.code();
        }
    };
    f.verbs.hold_delivery();
    f.scope.spawn(ask());
    f.verbs.time_out();
    while (f.loop.run_once()) continue;
    check(error == make_wc_error(IBV_WC_RETRY_EXC_ERR), "a dead server is reported");
}

void leak() {
    const SimulatedVerbs verbs;
    const Context context = Context::open();
    check(ibv_alloc_pd(context.native_handle()) != nullptr, "a domain that nothing releases");
}

} // namespace

int main(int argc, char** argv) {
    const std::string_view scenario = argc > 1 ? argv[1] : "";
    if (scenario == "answered") return answered(), 0;
    if (scenario == "delayed") return delayed(), 0;
    if (scenario == "repeated") return repeated(), 0;
    if (scenario == "unanswered") return unanswered(), 0;
    if (scenario == "leak") return leak(), 0;
    std::fprintf(stderr, "no such scenario\n");
    return 2;
}
