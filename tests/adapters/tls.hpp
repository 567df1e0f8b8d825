// SPDX-License-Identifier: MIT
// TLS between two streams of Asio, with a certificate that is made here.
#pragma once

#include "adapters/asio.hpp"

#if defined(ASYNCVERBS_BOOST_ASIO)
#include <boost/asio/read.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#else
#include <asio/read.hpp>
#include <asio/ssl.hpp>
#include <asio/write.hpp>
#endif

#include <openssl/evp.h>
#include <openssl/x509.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

#include "support/catch.hpp"

namespace asyncverbs::adapters {

// A server's context with a new key and a certificate that it signs itself.
inline net::ssl::context make_server_context() {
    const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> key(EVP_EC_gen("P-256"),
                                                                  &EVP_PKEY_free);
    const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), &X509_free);
    if (key == nullptr || certificate == nullptr) throw std::runtime_error("no certificate");
    ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
    X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -3600);
    X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
    X509_set_pubkey(certificate.get(), key.get());
    X509_sign(certificate.get(), key.get(), EVP_sha256());
    net::ssl::context context(net::ssl::context::tls_server);
    SSL_CTX_use_certificate(context.native_handle(), certificate.get());
    SSL_CTX_use_PrivateKey(context.native_handle(), key.get());
    return context;
}

// Greets, sends `text` from the client to the server, and says goodbye. `run_until(done)` runs the
// loop until done() is true.
template <class Transport, class RunUntil>
void talk_over_tls(Transport client_end, Transport server_end, const std::string& text,
                   RunUntil run_until) {
    net::ssl::context client_context(net::ssl::context::tls_client);
    net::ssl::context server_context = make_server_context();
    net::ssl::stream<Transport> client(std::move(client_end), client_context);
    net::ssl::stream<Transport> server(std::move(server_end), server_context);
    int ended = 0;
    Error failure;
    const auto on_end = [&](const Error& error, std::size_t = 0) {
        if (error) failure = error;
        ++ended;
    };
    const auto await_both = [&](const char* step) {
        INFO(step);
        run_until([&] { return ended == 2; });
        REQUIRE(std::exchange(ended, 0) == 2);
        REQUIRE_FALSE(failure);
    };

    client.async_handshake(net::ssl::stream_base::client, on_end);
    server.async_handshake(net::ssl::stream_base::server, on_end);
    await_both("handshake");
    std::string received(text.size(), ' ');
    net::async_write(client, net::buffer(text), on_end);
    net::async_read(server, net::buffer(received), on_end);
    await_both("message");
    CHECK(received == text);
    client.async_shutdown(on_end);
    server.async_shutdown(on_end);
    await_both("shutdown");
}

} // namespace asyncverbs::adapters
