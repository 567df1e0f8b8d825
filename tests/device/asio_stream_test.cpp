// SPDX-License-Identifier: MIT
// TLS over RDMA, in the event loop of Asio.
#include <asyncverbs/adapters/asio_stream.hpp>

#include <asyncverbs/rdma/async_qp.hpp>
#include <asyncverbs/rdma/router.hpp>

#include <string>
#include <utility>

#include "adapters/asio.hpp"
#include "adapters/tls.hpp"
#include "device/pair.hpp"
#include "support/catch.hpp"

using namespace asyncverbs;
using namespace asyncverbs::adapters;

TEST_CASE("device, Asio: TLS over a Stream", "[asio]") {
    net::io_context io;
    const AsioLoop<IoExecutor> loop(io);
    const Context context = device::open_device();
    const ProtectionDomain domain(context);
    Router router = Router::create(context, 64, loop);
    const auto make = [&] {
        AsyncQp qp(router, domain, Stream::queue_pair_options());
        qp.queue_pair().init({.gid_index = device::gid_index()});
        return AsioStream<IoExecutor>(io, Stream(std::move(qp), domain));
    };
    auto client = make();
    auto server = make();
    client.stream().queue_pair().connect(server.stream().queue_pair().local_address());
    server.stream().queue_pair().connect(client.stream().queue_pair().local_address());
    const auto run_until = [&io](auto done) {
        while (!done()) io.run_one();
    };
    talk_over_tls(std::move(client), std::move(server), std::string(300'000, 'x'), run_until);
}
