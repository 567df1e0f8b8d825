// SPDX-License-Identifier: MIT
// adopt: an existing program in C has made its queue pairs and its completion queue itself; a
// coroutine awaits the completions. The device is the one that RDMA_DEVICE names, else the first.
#include <asyncverbs/asyncverbs.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>

using namespace asyncverbs;

namespace {

// --- the existing program, in short ---

struct Program {
    ibv_context* context;
    ibv_pd* pd;
    ibv_comp_channel* channel;
    ibv_cq* cq;
    ibv_qp* qp;
};

void fail(const char* text) {
    std::fprintf(stderr, "error: %s\n", text);
    std::exit(1);
}

Program create_program(const char* name) {
    Program program{};
    ibv_device** devices = ibv_get_device_list(nullptr);
    for (ibv_device** device = devices; device != nullptr && *device != nullptr; ++device) {
        if (name != nullptr && std::strcmp(ibv_get_device_name(*device), name) != 0) continue;
        program.context = ibv_open_device(*device);
        break;
    }
    if (devices != nullptr) ibv_free_device_list(devices);
    if (program.context == nullptr) fail("no such RDMA device");
    program.pd = ibv_alloc_pd(program.context);
    program.channel = ibv_create_comp_channel(program.context);
    program.cq = ibv_create_cq(program.context, 16, nullptr, program.channel, 0);
    if (program.pd == nullptr || program.cq == nullptr) fail("ibv_create_cq");
    ibv_qp_init_attr attr{};
    attr.send_cq = program.cq;
    attr.recv_cq = program.cq;
    attr.cap = {4, 4, 1, 1, 0};
    attr.qp_type = IBV_QPT_RC;
    program.qp = ibv_create_qp(program.pd, &attr);
    ibv_qp_attr init{};
    init.qp_state = IBV_QPS_INIT;
    init.port_num = 1;
    constexpr int mask = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
    if (program.qp == nullptr || ibv_modify_qp(program.qp, &init, mask) != 0) fail("ibv_modify_qp");
    return program;
}

// Two receives that the device flushes: the completions that the program waits for.
void use(const Program& program) {
    for (std::uint64_t id = 1; id <= 2; ++id) {
        ibv_recv_wr receive{};
        receive.wr_id = id;
        ibv_recv_wr* bad = nullptr;
        if (ibv_post_recv(program.qp, &receive, &bad) != 0) fail("ibv_post_recv");
    }
    ibv_qp_attr error{};
    error.qp_state = IBV_QPS_ERR;
    if (ibv_modify_qp(program.qp, &error, IBV_QP_STATE) != 0) fail("ibv_modify_qp");
}

void destroy(const Program& program) {
    ibv_destroy_qp(program.qp);
    ibv_destroy_cq(program.cq);
    ibv_destroy_comp_channel(program.channel);
    ibv_dealloc_pd(program.pd);
    ibv_close_device(program.context);
}

// --- what is new ---

Task<> await_completions(AsyncCq& cq) {
    ibv_wc wcs[4];
    for (int left = 2; left > 0;) {
        for (const ibv_wc& wc : co_await cq.poll(wcs)) {
            std::printf("request %llu: %s\n", static_cast<unsigned long long>(wc.wr_id),
                        ibv_wc_status_str(wc.status));
            --left;
        }
    }
}

} // namespace

int main() try {
    const Program program = create_program(std::getenv("RDMA_DEVICE"));
    {
        EpollExecutor loop;
        AsyncCq cq = AsyncCq::create(CompletionQueue(borrow(program.cq)), loop);
        use(program);
        loop.run(await_completions(cq));
    } // before the objects that it has borrowed
    destroy(program);
    if (std::fflush(stdout) != 0) throw std::runtime_error("standard output cannot be written");
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
