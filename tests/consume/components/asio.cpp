// SPDX-License-Identifier: MIT
#include <asyncverbs/adapters/asio.hpp>

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/io_context.hpp>
using boost::asio::io_context;
#else
#include <asio/io_context.hpp>
using asio::io_context;
#endif

int main() {
    io_context io;
    const asyncverbs::AsioLoop loop(io);
    return loop.get_executor() == io.get_executor() ? 0 : 1;
}
