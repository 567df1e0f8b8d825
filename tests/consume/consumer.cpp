// SPDX-License-Identifier: MIT
// One of two translation units that include everything: what is not inline is defined twice.
#include <asyncverbs/asyncverbs.hpp>
#include <asyncverbs/testing/manual_notifier.hpp>

#include <cstdio>

int devices();

int main() {
    asyncverbs::EpollExecutor executor;
    const int found = devices();
    std::printf("%d RDMA devices\n", found);
    return found == static_cast<int>(asyncverbs::DeviceList().size()) ? 0 : 1;
}
