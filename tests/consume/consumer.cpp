// SPDX-License-Identifier: MIT
// What a program looks like that uses the library: more than one file includes it.
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
