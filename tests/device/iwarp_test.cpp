// SPDX-License-Identifier: MIT
// On a real iWARP device, the error of what it lacks names the cause.
#include <asyncverbs/cm/connect.hpp>
#include <asyncverbs/cm/listener.hpp>

#include <asyncverbs/executor/epoll_executor.hpp>
#include <asyncverbs/rdma/async_qp.hpp>

#include <cstdint>
#include <string>
#include <system_error>

#include "device/pair.hpp"
#include "device/programs.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using asyncverbs::support::contains;

namespace {

template <class Call>
std::string error_of(Call call) {
    try {
        call();
    } catch (const std::system_error& error) {
        return error.what();
    }
    return "no error";
}

Task<> check_error(Operation operation, const char* text) {
    std::string words = "no error";
    try {
        static_cast<void>(co_await operation);
    } catch (const std::system_error& error) {
        words = error.what();
    }
    CHECK_THAT(words, contains(text));
}

} // namespace

TEST_CASE("device: what iWARP lacks is an error that names the cause", "[iwarp]") {
    if (!device::is_iwarp()) {
        WARN("skipped: the device is not an iWARP device");
        return;
    }
    EpollExecutor loop;
    const Context context = device::open_device();
    const ProtectionDomain domain(context);
    Router router = Router::create(context, 64, loop);
    AsyncQp unconnected(router, domain);
    CHECK_THAT(error_of([&] { unconnected.queue_pair().init(); }),
               contains("is an iWARP device: connect its queue pairs by address"));
    CHECK_THAT(error_of([&] { AsyncQp(router, domain, {.type = IBV_QPT_UD}); }),
               contains("is an iWARP device, which has no UD"));

    Listener listener(loop, device::device_address(), "");
    const auto serve = [&]() -> Task<> {
        IncomingConnection incoming = co_await listener.accept();
        Router its_router = Router::create(incoming.context(), 64, loop);
        const ProtectionDomain its_domain(incoming.context());
        const AsyncQp qp(its_router, its_domain);
        Connection connection = co_await incoming.accept(qp.queue_pair());
        static_cast<void>(co_await connection.disconnected());
    };
    const auto dial = [&]() -> Task<> {
        OutgoingConnection outgoing =
            co_await resolve(loop, device::device_address(), std::to_string(listener.port()));
        Router its_router = Router::create(outgoing.context(), 64, loop);
        const ProtectionDomain its_domain(outgoing.context());
        const MemoryRegion memory = MemoryRegion::allocate(its_domain, 8);
        CHECK_THAT(error_of([&] { MemoryWindow window(memory); }),
                   contains("the device has no memory windows"));
        AsyncQp qp(its_router, its_domain);
        Connection connection = co_await outgoing.connect(qp.queue_pair());
        const Slice slice = memory.slice(0, 8);
        const RemoteSlice remote = memory.remote_slice();
        co_await check_error(qp.send_with_imm(slice, 1), "iWARP has no immediate data");
        co_await check_error(qp.write_with_imm(slice, remote, 1), "iWARP has no immediate data");
        co_await check_error(qp.fetch_and_add(slice, remote, 1), "iWARP has no atomics");
        co_await check_error(qp.compare_and_swap(slice, remote, 0, 1), "iWARP has no atomics");
        co_await connection.disconnect();
    };
    Scope scope;
    scope.spawn(serve());
    scope.spawn(dial());
    const auto join = [&]() -> Task<> { co_await scope.join(); };
    device::run_bounded(loop, join());
}
