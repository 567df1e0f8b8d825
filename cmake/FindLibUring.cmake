# Finds liburing, 2.2 or newer, and defines
#   LibUring::LibUring    imported target: headers and library
#   LibUring_FOUND, LibUring_VERSION
# Hints: LibUring_ROOT (or CMAKE_PREFIX_PATH).

find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
    pkg_check_modules(PC_LibUring QUIET liburing)
endif()

find_path(LibUring_INCLUDE_DIR liburing.h HINTS ${PC_LibUring_INCLUDE_DIRS})
find_library(LibUring_LIBRARY uring HINTS ${PC_LibUring_LIBRARY_DIRS})
set(LibUring_VERSION "${PC_LibUring_VERSION}")

# Headers before 2.3 do not contain the version. Look for a function that 2.2 added.
if(LibUring_INCLUDE_DIR)
    file(STRINGS "${LibUring_INCLUDE_DIR}/liburing.h" LibUring_NEW_ENOUGH
        REGEX "io_uring_prep_cancel64" LIMIT_COUNT 1)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibUring
    REQUIRED_VARS LibUring_LIBRARY LibUring_INCLUDE_DIR LibUring_NEW_ENOUGH
    VERSION_VAR LibUring_VERSION
    REASON_FAILURE_MESSAGE "install liburing 2.2 or newer (Debian, Ubuntu: apt-get install liburing-dev)")

if(LibUring_FOUND AND NOT TARGET LibUring::LibUring)
    add_library(LibUring::LibUring UNKNOWN IMPORTED)
    set_target_properties(LibUring::LibUring PROPERTIES
        IMPORTED_LOCATION "${LibUring_LIBRARY}"
        INTERFACE_INCLUDE_DIRECTORIES "${LibUring_INCLUDE_DIR}")
endif()
mark_as_advanced(LibUring_INCLUDE_DIR LibUring_LIBRARY)
