// SPDX-License-Identifier: MIT
// The notifier that IoUringPoller gives for a channel, on any descriptor.
#pragma once

#include <asyncverbs/adapters/io_uring.hpp>

#include <chrono>
#include <memory>
#include <stop_token>
#include <utility>

namespace asyncverbs::support {

class EdgeNotifier {
public:
    EdgeNotifier(std::shared_ptr<detail::IoUringLoop> loop, int fd)
        : registration_(std::make_unique<detail::IoUringRegistration>(
              std::move(loop), fd, detail::IoUringTrigger::edge)) {}

    detail::ReadableOperation readable(std::stop_token stop = {}) {
        return {*registration_, detail::Deadline::never, std::move(stop)};
    }
    detail::ReadableOperation readable(std::stop_token stop, std::chrono::nanoseconds bound) {
        return {*registration_, detail::Deadline::after(bound), std::move(stop)};
    }

private:
    std::unique_ptr<detail::IoUringRegistration> registration_;
};

} // namespace asyncverbs::support
