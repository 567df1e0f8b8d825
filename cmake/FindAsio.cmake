# Finds standalone Asio (without Boost, header-only) and defines
#   Asio::Asio    imported target: the headers and their dependencies
#   Asio_FOUND, Asio_VERSION
# Hints: Asio_ROOT (or CMAKE_PREFIX_PATH).

find_package(Threads QUIET)
find_path(Asio_INCLUDE_DIR asio.hpp)
if(Asio_INCLUDE_DIR)
    file(STRINGS "${Asio_INCLUDE_DIR}/asio/version.hpp" Asio_VERSION REGEX "define ASIO_VERSION [0-9]+")
    string(REGEX REPLACE ".*ASIO_VERSION ([0-9]+)([0-9][0-9][0-9])([0-9][0-9]).*" "\\1.\\2.\\3"
        Asio_VERSION "${Asio_VERSION}")
    string(REGEX REPLACE "\\.0+([0-9])" ".\\1" Asio_VERSION "${Asio_VERSION}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Asio
    REQUIRED_VARS Asio_INCLUDE_DIR Threads_FOUND
    VERSION_VAR Asio_VERSION
    REASON_FAILURE_MESSAGE "install Asio (Debian, Ubuntu: apt-get install libasio-dev)")

if(Asio_FOUND AND NOT TARGET Asio::Asio)
    add_library(Asio::Asio INTERFACE IMPORTED)
    set_target_properties(Asio::Asio PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${Asio_INCLUDE_DIR}"
        INTERFACE_LINK_LIBRARIES Threads::Threads)
endif()
mark_as_advanced(Asio_INCLUDE_DIR)
