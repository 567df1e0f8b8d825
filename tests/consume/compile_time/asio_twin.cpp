// SPDX-License-Identifier: MIT
// Two ends and one message. Awaits the write and the read; the read has a deadline.
#include <asio.hpp>
#include <asio/experimental/awaitable_operators.hpp>

#include <array>
#include <chrono>
#include <cstdio>
#include <exception>
#include <utility>

namespace {

using namespace asio::experimental::awaitable_operators;
using asio::use_awaitable;
using asio::ip::tcp;

asio::awaitable<void> receive(tcp::acceptor acceptor) {
    tcp::socket socket = co_await acceptor.async_accept(use_awaitable);
    asio::steady_timer deadline(socket.get_executor(), std::chrono::seconds(1));
    std::array<char, 64> bytes;
    const auto result = co_await (asio::async_read(socket, asio::buffer(bytes), use_awaitable) ||
                                  deadline.async_wait(use_awaitable));
    if (result.index() == 0) std::printf("%zu bytes\n", std::get<0>(result));
}

asio::awaitable<void> exchange(asio::io_context& loop) {
    tcp::acceptor acceptor(loop, {asio::ip::address_v4::loopback(), 0});
    tcp::socket socket(loop);
    const tcp::endpoint peer = acceptor.local_endpoint();
    asio::co_spawn(loop, receive(std::move(acceptor)), asio::detached);
    co_await socket.async_connect(peer, use_awaitable);
    const std::array<char, 64> bytes{};
    co_await asio::async_write(socket, asio::buffer(bytes), use_awaitable);
}

} // namespace

int main() try {
    asio::io_context loop;
    asio::co_spawn(loop, exchange(loop), asio::detached);
    loop.run();
} catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
}
