# find_package(asyncverbs): the headers, the target, FindIBVerbs, FindRDMACM and the soft-RoCE runner.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Header-only: one package for every architecture.
set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/asyncverbs")

install(TARGETS asyncverbs EXPORT asyncverbsTargets FILE_SET HEADERS)
install(EXPORT asyncverbsTargets NAMESPACE asyncverbs:: DESTINATION "${package_dir}")

configure_package_config_file(
    cmake/asyncverbsConfig.cmake.in "${PROJECT_BINARY_DIR}/asyncverbsConfig.cmake"
    INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(
    "${PROJECT_BINARY_DIR}/asyncverbsConfigVersion.cmake"
    COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(
    FILES
        "${PROJECT_BINARY_DIR}/asyncverbsConfig.cmake"
        "${PROJECT_BINARY_DIR}/asyncverbsConfigVersion.cmake"
        cmake/FindIBVerbs.cmake
        cmake/FindRDMACM.cmake
    DESTINATION "${package_dir}")
install(DIRECTORY cmake/soft-roce DESTINATION "${package_dir}" USE_SOURCE_PERMISSIONS)
