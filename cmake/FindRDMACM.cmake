# Finds librdmacm (rdma-core) and defines
#   RDMACM::RDMACM    imported target: headers and library
#   RDMACM_FOUND, RDMACM_VERSION
# Hints: RDMACM_ROOT (or CMAKE_PREFIX_PATH).

find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
    pkg_check_modules(PC_RDMACM QUIET librdmacm)
endif()

find_path(RDMACM_INCLUDE_DIR rdma/rdma_cma.h HINTS ${PC_RDMACM_INCLUDE_DIRS})
find_library(RDMACM_LIBRARY rdmacm HINTS ${PC_RDMACM_LIBRARY_DIRS})
set(RDMACM_VERSION "${PC_RDMACM_VERSION}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(RDMACM
    REQUIRED_VARS RDMACM_LIBRARY RDMACM_INCLUDE_DIR
    VERSION_VAR RDMACM_VERSION
    REASON_FAILURE_MESSAGE "install rdma-core's librdmacm (Debian, Ubuntu: apt-get install librdmacm-dev)")

if(RDMACM_FOUND AND NOT TARGET RDMACM::RDMACM)
    add_library(RDMACM::RDMACM UNKNOWN IMPORTED)
    set_target_properties(RDMACM::RDMACM PROPERTIES
        IMPORTED_LOCATION "${RDMACM_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${RDMACM_INCLUDE_DIR}")
endif()
mark_as_advanced(RDMACM_INCLUDE_DIR RDMACM_LIBRARY)
