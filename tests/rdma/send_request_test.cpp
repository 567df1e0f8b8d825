// SPDX-License-Identifier: MIT
// RemoteSlice, SendRequest and the text of errors.
#include "rdma/fixture.hpp"

#include <asyncverbs/rdma/completion.hpp>
#include <asyncverbs/rdma/send_request.hpp>

#include <array>
#include <optional>
#include <string>
#include <vector>

using namespace asyncverbs;
using namespace asyncverbs::support;

TEST_CASE("RemoteSlice: slices of it are within its bounds", "[rdma]") {
    const RemoteSlice whole{4096, 16, 7};
    const RemoteSlice part = whole.slice(4, 8);
    CHECK(part.address == 4100);
    CHECK(part.length == 8);
    CHECK(part.rkey == 7);
    CHECK(part.slice(3).address == 4103);
    CHECK(part.slice(3).length == 5);
    CHECK(whole.slice(16).length == 0);
    CHECK_THROWS_WITH(whole.slice(4, 13), contains("length 13 at offset 4 is outside the peer's"));
    CHECK_THROWS_WITH(whole.slice(17), contains("offset 17 is outside the peer's of size 16"));
}

TEST_CASE("SendRequest: each kind does the operation of its name", "[rdma]") {
    RouterFixture f;
    f.write(0, "abcdefgh");
    f.write(200, "ijklmnop");
    f.write_number(400, 40);
    Awaiting received(f.b->recv(Slices()));
    const std::vector<SendRequest> requests{
        SendRequest::read(f.slice(8, 8), f.remote(200, 8)),
        SendRequest::fetch_and_add(f.slice(16, 8), f.remote(400, 8), 2),
        SendRequest::compare_and_swap(f.slice(24, 8), f.remote(400, 8), 42, 7),
        SendRequest::write_with_imm(f.slice(0, 8), f.remote(208, 8), 0x01020304)};
    std::array<Operation, 4> operations;
    f.a->post(requests, operations);
    f.run();
    for (const Operation& operation : operations) CHECK(operation.done());
    CHECK(f.read(8, 8) == "ijklmnop");
    CHECK(f.number(16) == 40);
    CHECK(f.number(24) == 42);
    CHECK(f.number(400) == 7);
    CHECK(f.read(208, 8) == "abcdefgh");
    REQUIRE(received.completion);
    CHECK(received.completion->imm() == 0x01020304);
    CHECK(f.router->statistics().polls > 0);
}

TEST_CASE("SendRequest: a datagram", "[rdma]") {
    RouterFixture f(simulated::rxe, {.type = IBV_QPT_UD, .max_send_wr = 4, .max_recv_wr = 4});
    const AddressHandle peer(f.domain, f.a->queue_pair(), f.b->queue_pair().local_address());
    Operation receive = f.b->recv(f.slice(100, 64));
    const std::array<SendRequest, 1> request{
        SendRequest::send_to(f.slice(0, 8), peer, f.b->queue_pair().qp_num(), 0x11111111)};
    std::array<Operation, 1> sent;
    f.a->post(request, sent);
    f.run();
    CHECK(sent[0].done());
    CHECK(receive.done());
}

TEST_CASE("OperationError: names the operation, its queue pair and the cause", "[rdma]") {
    const auto text = [](ibv_wc_opcode opcode, std::uint32_t vendor_error) -> std::string {
        ibv_wc wc{};
        wc.status = IBV_WC_REM_ACCESS_ERR;
        wc.opcode = opcode;
        wc.qp_num = 17;
        wc.vendor_err = vendor_error;
        return OperationError(Completion(wc)).what();
    };
    const std::string status = ibv_wc_status_str(IBV_WC_REM_ACCESS_ERR);
    CHECK(text(IBV_WC_SEND, 0) == "send on queue pair 17: " + status);
    CHECK(text(IBV_WC_RDMA_WRITE, 0) == "RDMA write on queue pair 17: " + status);
    CHECK(text(IBV_WC_RDMA_READ, 0) == "RDMA read on queue pair 17: " + status);
    CHECK(text(IBV_WC_COMP_SWAP, 0) == "compare-and-swap on queue pair 17: " + status);
    CHECK(text(IBV_WC_FETCH_ADD, 0) == "fetch-and-add on queue pair 17: " + status);
    CHECK(text(IBV_WC_RECV, 0x81) == "receive on queue pair 17, vendor error 0x81: " + status);
    CHECK(text(IBV_WC_BIND_MW, 0) == "bind of a memory window on queue pair 17: " + status);
    CHECK(text(IBV_WC_LOCAL_INV, 0) == "invalidation on queue pair 17: " + status);
    CHECK(text(IBV_WC_TSO, 0) == "operation on queue pair 17: " + status);
}
