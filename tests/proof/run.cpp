// SPDX-License-Identifier: MIT
#include "proof/run.hpp"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace asyncverbs::proof {

void Run::tell(int level, const std::string& line) const {
    if (narrated()) std::printf("%*s%s\n", 2 * level, "", line.c_str());
}

void Run::violated(std::string_view property, std::string_view detail) const {
    if (narrated()) {
        std::printf("\nviolated: %.*s\n          %.*s\n", static_cast<int>(property.size()),
                    property.data(), static_cast<int>(detail.size()), detail.data());
        std::fflush(stdout);
        std::_Exit(1);
    }
    // Replay it from its text in a new process: this also shows that it is repeatable.
    const std::string replay = text();
    std::printf("\nSchedule %llu fails. explorer --replay %s:\n\n",
                static_cast<unsigned long long>(number_), replay.c_str());
    std::fflush(stdout);
    ::execl("/proc/self/exe", "explorer", "--replay", replay.c_str(), nullptr);
    std::perror("explorer: /proc/self/exe");
    std::_Exit(1);
}

} // namespace asyncverbs::proof
