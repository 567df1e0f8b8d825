# Installation, for find_package(asyncverbs) and pkg-config: the headers, the targets, the find modules
# for their dependencies, and the soft-RoCE runner with its CMake function.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# Header-only: one package for every architecture.
set(package_dir "${CMAKE_INSTALL_DATADIR}/cmake/asyncverbs")

install(TARGETS asyncverbs EXPORT asyncverbsTargets FILE_SET HEADERS)
install(EXPORT asyncverbsTargets NAMESPACE asyncverbs:: DESTINATION "${package_dir}")

# Each adapter is a component. Its targets are loaded only on request.
get_property(adapters DIRECTORY PROPERTY ASYNCVERBS_ADAPTERS)
set(adapter_packages "")
foreach(adapter IN LISTS adapters)
    install(TARGETS asyncverbs_${adapter} EXPORT asyncverbs_${adapter}Targets FILE_SET HEADERS)
    install(EXPORT asyncverbs_${adapter}Targets NAMESPACE asyncverbs:: DESTINATION "${package_dir}")
    get_target_property(packages asyncverbs_${adapter} ASYNCVERBS_PACKAGES)
    string(APPEND adapter_packages "set(_asyncverbs_${adapter}_packages \"${packages}\")\n")
endforeach()

configure_package_config_file(
    cmake/asyncverbsConfig.cmake.in "${PROJECT_BINARY_DIR}/asyncverbsConfig.cmake"
    INSTALL_DESTINATION "${package_dir}")
configure_file(cmake/asyncverbsConfigVersion.cmake.in
    "${PROJECT_BINARY_DIR}/asyncverbsConfigVersion.cmake" @ONLY)
file(GLOB find_modules cmake/Find*.cmake)
install(
    FILES
        "${PROJECT_BINARY_DIR}/asyncverbsConfig.cmake"
        "${PROJECT_BINARY_DIR}/asyncverbsConfigVersion.cmake"
        cmake/asyncverbsSoftRoce.cmake
        ${find_modules}
    DESTINATION "${package_dir}")
install(DIRECTORY cmake/soft-roce DESTINATION "${package_dir}" USE_SOURCE_PERMISSIONS)
# Its sources: they are compiled with the options of the project that uses them.
install(DIRECTORY simulation DESTINATION "${package_dir}")

# The installed tree may be moved: pkg-config finds the headers relative to the .pc file.
set(pkgconfig_dir "${CMAKE_INSTALL_FULL_DATADIR}/pkgconfig")
file(RELATIVE_PATH pkgconfig_to_include "${pkgconfig_dir}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/asyncverbs.pc.in "${PROJECT_BINARY_DIR}/asyncverbs.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/asyncverbs.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
