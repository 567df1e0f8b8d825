// SPDX-License-Identifier: MIT
// A message is its number in the variant, then its members: numbers big-endian, a text last.
#include "protocol.hpp"

#include <algorithm>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace rdma_cp {

namespace {

class Writer {
public:
    void operator()(const Offer& offer) { put(offer.size), put(offer.modified), put(offer.name); }
    void operator()(const Grant& grant) { put(grant.offset), put(grant.address), put(grant.rkey); }
    void operator()(const Credit&) {}
    void operator()(const Finish& finish) {
        bytes_.insert(bytes_.end(), finish.digest.begin(), finish.digest.end());
    }
    void operator()(const Done&) {}
    void operator()(const Refusal& refusal) { put(refusal.for_now), put(refusal.reason); }

    template <class T>
        requires std::is_integral_v<T>
    void put(T value) {
        for (std::size_t i = sizeof(T); i-- > 0;) {
            bytes_.push_back(static_cast<std::byte>(std::uint64_t{value} >> (8 * i)));
        }
    }

    std::vector<std::byte> take() { return std::move(bytes_); }

private:
    void put(const std::string& text) {
        const auto bytes = std::as_bytes(std::span(text).first(std::min(text.size(), max_text)));
        bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    }

    std::vector<std::byte> bytes_;
};

class Reader {
public:
    explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

    void operator()(Offer& offer) { get(offer.size), get(offer.modified), get(offer.name); }
    void operator()(Grant& grant) { get(grant.offset), get(grant.address), get(grant.rkey); }
    void operator()(Credit&) {}
    void operator()(Finish& finish) {
        std::ranges::copy(take(finish.digest.size()), finish.digest.begin());
    }
    void operator()(Done&) {}
    void operator()(Refusal& refusal) { get(refusal.for_now), get(refusal.reason); }

    template <class T>
        requires std::is_integral_v<T>
    void get(T& value) {
        std::uint64_t all = 0;
        for (const std::byte byte : take(sizeof(T)))
            all = all << 8 | std::to_integer<unsigned>(byte);
        value = static_cast<T>(all);
    }

    void end() const {
        if (!bytes_.empty()) throw std::runtime_error("the peer sent a message that is too long");
    }

private:
    void get(std::string& text) {
        if (bytes_.size() > max_text)
            throw std::runtime_error("the peer sent a text that is too long");
        text.assign(reinterpret_cast<const char*>(bytes_.data()), bytes_.size());
        bytes_ = {};
        if (!is_plain(text))
            throw std::runtime_error("the peer sent a text with control characters");
    }

    std::span<const std::byte> take(std::size_t count) {
        if (bytes_.size() < count)
            throw std::runtime_error("the peer sent a message that is too short");
        const std::span<const std::byte> taken = bytes_.first(count);
        bytes_ = bytes_.subspan(count);
        return taken;
    }

    std::span<const std::byte> bytes_;
};

template <std::size_t... I>
Message empty_message(std::size_t type, std::index_sequence<I...>) {
    Message message;
    const bool known = ((type == I && (message.emplace<I>(), true)) || ...);
    if (!known) throw std::runtime_error("the peer sent a message of an unknown type");
    return message;
}

} // namespace

bool is_plain(const std::string& text) {
    return std::ranges::none_of(text, [](unsigned char c) { return c < ' ' || c == 127; });
}

std::vector<std::byte> encode(const Message& message) {
    Writer writer;
    writer.put(static_cast<std::uint8_t>(message.index()));
    std::visit(writer, message);
    return writer.take();
}

Message decode(std::span<const std::byte> bytes) {
    Reader reader(bytes);
    std::uint8_t type = 0;
    reader.get(type);
    Message message = empty_message(type, std::make_index_sequence<std::variant_size_v<Message>>());
    std::visit(reader, message);
    reader.end();
    return message;
}

} // namespace rdma_cp
