// SPDX-License-Identifier: MIT
// A place in a sequence of bytes that is one span, or several that follow one another.
#pragma once

#include <cstddef>
#include <span>

namespace asyncverbs::detail {

template <class Byte>
class SpanCursor {
public:
    explicit SpanCursor(std::span<Byte> one) noexcept : current_(one) {}
    explicit SpanCursor(std::span<const std::span<Byte>> several) noexcept : rest_(several) {
        skip_empty();
    }

    bool empty() const noexcept { return current_.empty(); }

    /// The next bytes, `most` of them at most; fewer where a span ends.
    std::span<Byte> take(std::size_t most) noexcept {
        const std::span<Byte> taken =
            current_.first(most < current_.size() ? most : current_.size());
        current_ = current_.subspan(taken.size());
        skip_empty();
        return taken;
    }

private:
    void skip_empty() noexcept {
        while (current_.empty() && !rest_.empty()) {
            current_ = rest_.front();
            rest_ = rest_.subspan(1);
        }
    }

    std::span<Byte> current_; // empty only at the end
    std::span<const std::span<Byte>> rest_;
};

} // namespace asyncverbs::detail
