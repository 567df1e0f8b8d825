# The source package: `cpack --config build/…/CPackSourceConfig.cmake`, or the target package_source.
set(CPACK_VERBATIM_VARIABLES ON)
set(CPACK_GENERATOR TGZ)
set(CPACK_SOURCE_GENERATOR "TGZ;TXZ")
set(CPACK_SOURCE_PACKAGE_FILE_NAME "asyncverbs-${PROJECT_VERSION}")
set(CPACK_PACKAGE_VENDOR asyncverbs)
set(CPACK_PROJECT_CONFIG_FILE "${PROJECT_SOURCE_DIR}/cmake/package_time.cmake")
set(CPACK_ASYNCVERBS_SOURCE_DIR "${PROJECT_SOURCE_DIR}")
include(CPack)
