// SPDX-License-Identifier: MIT
#include <asyncverbs/verbs/error.hpp>

#include <cerrno>
#include <string>

#include "support/catch.hpp"
#include "verbs/failure.hpp"

using namespace asyncverbs;
using support::contains;
using support::failure_of;

TEST_CASE("a failed verb is named with its errno", "[verbs][error]") {
    const auto error = failure_of([] { throw_verb_error("ibv_create_cq", ENOMEM); });
    CHECK(error.what() == std::string("ibv_create_cq: Cannot allocate memory"));
    CHECK(error.code() == std::errc::not_enough_memory);
}

TEST_CASE("the errno of a failed verb may have either sign", "[verbs][error]") {
    CHECK(failure_of([] { throw_verb_error("ibv_modify_qp", -EINVAL); }).code() ==
          std::errc::invalid_argument);
    CHECK(failure_of([] { throw_verb_error("ibv_modify_qp", -EPERM); }).code() ==
          std::errc::operation_not_permitted);
}

TEST_CASE("a verb that failed without an errno is an I/O error", "[verbs][error]") {
    CHECK(failure_of([] { throw_verb_error("ibv_alloc_pd", 0); }).code() == std::errc::io_error);
}

TEST_CASE("the errno of a verb is found in each way of reporting", "[verbs][error]") {
    errno = ENOANO;
    CHECK(detail::verb_errno(EINVAL) == EINVAL);
    CHECK(detail::verb_errno(-EINVAL) == EINVAL);
    CHECK(detail::verb_errno(-1) == ENOANO);
    errno = 0;
    CHECK(detail::verb_errno(-1) == EPERM);
    CHECK(detail::verb_errno() == 0);
    errno = -ENOMEM;
    CHECK(detail::verb_errno() == ENOMEM);
}

TEST_CASE("completion status is an error category", "[verbs][error]") {
    const std::error_code error = make_wc_error(IBV_WC_RETRY_EXC_ERR);
    CHECK(error);
    CHECK(error.value() == IBV_WC_RETRY_EXC_ERR);
    CHECK(error.category() == wc_status_category());
    CHECK(std::string(error.category().name()) == "ibv_wc_status");
    CHECK(error.message() == ibv_wc_status_str(IBV_WC_RETRY_EXC_ERR));
    CHECK(error != make_wc_error(IBV_WC_WR_FLUSH_ERR));
}

TEST_CASE("every completion status has a message", "[verbs][error]") {
    for (int status = IBV_WC_SUCCESS; status <= IBV_WC_TM_RNDV_INCOMPLETE; ++status) {
        CHECK(wc_status_category().message(status) ==
              ibv_wc_status_str(static_cast<ibv_wc_status>(status)));
    }
    CHECK(wc_status_category().message(1000) == "unknown status 1000");
    CHECK(wc_status_category().message(-1) == "unknown status -1");
}

TEST_CASE("a successful completion is no error", "[verbs][error]") {
    CHECK_FALSE(make_wc_error(IBV_WC_SUCCESS));
    CHECK(make_wc_error(IBV_WC_SUCCESS) == std::error_code());
}

TEST_CASE("a value out of range is reported with its range", "[verbs][error]") {
    detail::check_range("depth", 1, 1, 8, "sim0");
    detail::check_range("depth", 8, 1, 8, "sim0");
    const auto error = failure_of([] { detail::check_range("depth", 9, 1, 8, "sim0"); });
    CHECK(error.code() == std::errc::invalid_argument);
    CHECK_THAT(error.what(), contains("depth 9 is out of range for sim0: valid are 1 to 8"));
    CHECK_THAT(failure_of([] { detail::check_range("depth", 0, 1, 8, "sim0"); }).what(),
               contains("depth 0"));
    CHECK_THAT(failure_of([] { detail::check_range("GID index", 0, 0, -1, "sim0"); }).what(),
               contains("has none"));
}
