// SPDX-License-Identifier: MIT
// Does not compile with Asio before 1.30: CALL passes no completion token.
#include <asyncverbs/adapters/asio.hpp>
#include <asyncverbs/adapters/asio_stream.hpp>

void call(asyncverbs::AsioCq<>& cq, asyncverbs::AsioStream<>& stream, ibv_wc (&wcs)[4]);

void call(asyncverbs::AsioCq<>& cq, asyncverbs::AsioStream<>& stream, ibv_wc (&wcs)[4]) {
    static_cast<void>(cq), static_cast<void>(stream);
    CALL;
}
