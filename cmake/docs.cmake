# `cmake --build … --target docs` writes the reference to docs/html of the build tree. A public entity
# without a doc block is an error. The target is not part of `all`; a test builds it.
find_package(Doxygen)
if(NOT DOXYGEN_FOUND)
    message(STATUS "The target docs is left out: it needs doxygen")
    return()
endif()

set(DOXYGEN_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/docs")
set(DOXYGEN_STRIP_FROM_PATH "${PROJECT_SOURCE_DIR}/include"
    "${PROJECT_SOURCE_DIR}/simulation/include" "${PROJECT_SOURCE_DIR}")
set(DOXYGEN_STRIP_FROM_INC_PATH "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}/simulation/include")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE "${PROJECT_SOURCE_DIR}/docs/index.md")
# Not part of the interface: details, and the members that the language requires of an awaiter.
set(DOXYGEN_EXCLUDE_PATTERNS */detail/*)
set(DOXYGEN_EXCLUDE_SYMBOLS *::detail *::detail::*
    asyncverbs::ManualNotifier::Readable asyncverbs::Scope::Start)
# A defaulted move has no doc block; the doc block of the class describes the moved-from state. The
# filter removes inline namespaces, so that names appear as users write them.
set(DOXYGEN_FILTER_PATTERNS
    "*.hpp=sed -E -e /noexcept.=.default.$/s/.*// -e s/::inline.[A-Z_]+//")
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
set(DOXYGEN_BUILTIN_STL_SUPPORT YES)
set(DOXYGEN_EXTRACT_ALL NO)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_QUIET YES)
set(DOXYGEN_WARNINGS YES)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
doxygen_add_docs(docs docs include simulation/include WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
