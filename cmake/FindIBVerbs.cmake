# Finds libibverbs (rdma-core) and defines
#   IBVerbs::IBVerbs    imported target: headers and library
#   IBVerbs_FOUND, IBVerbs_VERSION
# Hints: IBVerbs_ROOT (or CMAKE_PREFIX_PATH).

find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
    pkg_check_modules(PC_IBVerbs QUIET libibverbs)
endif()

find_path(IBVerbs_INCLUDE_DIR infiniband/verbs.h HINTS ${PC_IBVerbs_INCLUDE_DIRS})
find_library(IBVerbs_LIBRARY ibverbs HINTS ${PC_IBVerbs_LIBRARY_DIRS})
set(IBVerbs_VERSION "${PC_IBVerbs_VERSION}")

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(IBVerbs
    REQUIRED_VARS IBVerbs_LIBRARY IBVerbs_INCLUDE_DIR
    VERSION_VAR IBVerbs_VERSION
    REASON_FAILURE_MESSAGE "install rdma-core's libibverbs (Debian, Ubuntu: apt-get install libibverbs-dev)")

if(IBVerbs_FOUND AND NOT TARGET IBVerbs::IBVerbs)
    add_library(IBVerbs::IBVerbs UNKNOWN IMPORTED)
    set_target_properties(IBVerbs::IBVerbs PROPERTIES
        IMPORTED_LOCATION "${IBVerbs_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${IBVerbs_INCLUDE_DIR}")
endif()
mark_as_advanced(IBVerbs_INCLUDE_DIR IBVerbs_LIBRARY)
