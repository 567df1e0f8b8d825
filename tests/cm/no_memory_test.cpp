// SPDX-License-Identifier: MIT
// Lack of memory: each allocation fails once, and all of them from the nth on, while connections
// are made, used and ended. Only std::bad_alloc, or the error of a peer that ran out of memory, may
// end an operation. No coroutine is left behind, and the loop is usable afterwards.
#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <array>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "cm/fixture.hpp"
#include "support/catch.hpp"
#include "support/coroutine.hpp"
#include "support/counters.hpp"

using namespace asyncverbs;
using asyncverbs::support::CmFixture;
using asyncverbs::support::Coroutine;

namespace {

// Runs a task to its end, which is one of those that are allowed. Its frame may not be allocated.
Coroutine run(Task<> task, int& ended) {
    try {
        co_await std::move(task);
    } catch (const std::bad_alloc&) {
    } catch (const std::system_error&) { // the peer has rejected, or has disconnected
    }
    ++ended;
}

// Allocations of the simulation do not fail.
struct CmNoMemoryFixture : CmFixture {
    CmNoMemoryFixture() {
        sim.on_call([this](const simulated::Call& call) {
            if (call.moment == simulated::Call::Moment::before) {
                shelter.emplace();
            } else {
                shelter.reset();
            }
        });
    }
    ~CmNoMemoryFixture() { sim.on_call(nullptr); }

    void start(Task<> task) {
        coroutines.at(started) = ::run(std::move(task), ended);
        ++started;
    }
    template <class Start>
    void try_start(Start start_one) {
        try {
            start(start_one());
        } catch (const std::bad_alloc&) { // it has not started
        }
    }

    Task<> wait_until_closed(std::optional<Connection>& connection) {
        static_cast<void>(co_await connection->disconnected());
    }
    Task<> disconnect(std::optional<Connection>& connection) { co_await connection->disconnect(); }
    Task<> accept_another() { static_cast<void>(co_await listener->accept()); }

    // Whatever fails, the loop goes on.
    void use() {
        try_start([this] { return serve(); });
        try_start([this] { return accept_another(); });
        try_start([this] { return dial(); });
        run();
        if (server) try_start([this] { return wait_until_closed(server); });
        if (client) try_start([this] { return disconnect(client); });
        run();
        try {
            const Listener other(loop, "", "");
        } catch (const std::bad_alloc&) {
        }
    }

    // With memory again, the next request is answered, by an acceptor or by its owner.
    void check_listens() {
        run();
        std::optional<support::QueuePairOwner> end;
        const auto make_qp = [&end](const OutgoingConnection& outgoing) -> QueuePair& {
            return end.emplace(outgoing.context()).qp;
        };
        const support::Running accepting(listener->accept());
        const support::Running asking(connect(loop, host, port, make_qp));
        run();
        incoming.reset();
        run();
        CHECK(asking.done);
    }

    // With memory again, what is left ends: the owners of a request or connection reject or
    // disconnect it, and the peer is told.
    void check_none_is_left() {
        run();
        incoming.reset();
        listener.reset();
        client.reset();
        server.reset();
        run();
        CHECK(ended == static_cast<int>(started));
    }

    void check_usable() {
        client_end.reset();
        server_end.reset();
        listener.emplace(loop, host, port);
        make_connection();
    }

    std::array<Coroutine, 8> coroutines;
    std::size_t started = 0;
    int ended = 0;
    std::optional<support::FailureShelter> shelter;
};

} // namespace

TEST_CASE("no memory: connections", "[cm][no_memory]") {
    const bool once = GENERATE(true, false);
    bool failed = true;
    for (std::size_t skip = 0; failed; ++skip) {
        INFO((once ? "only allocation " : "all from allocation ") << skip);
        CmNoMemoryFixture f;
        once ? support::fail_allocation(skip) : support::run_out_of_memory(skip);
        std::exception_ptr wrong;
        try {
            f.use();
        } catch (...) {
            wrong = std::current_exception();
        }
        failed = support::stop_failing();
        if (wrong) std::rethrow_exception(wrong);
        f.check_listens();
        f.check_none_is_left();
        f.check_usable();
        REQUIRE(skip < 1000);
        if (!failed) CHECK(skip > 50);
    }
}
