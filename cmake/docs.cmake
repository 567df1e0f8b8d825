# `cmake --build … --target docs`: the reference, with the README in front, in docs/html of the build
# tree. A public entity without a doc block is an error. Built by hand and by a test, not by `all`.
find_package(Doxygen)
if(NOT DOXYGEN_FOUND)
    message(STATUS "The target docs is left out: it needs doxygen")
    return()
endif()

set(DOXYGEN_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/docs")
set(DOXYGEN_STRIP_FROM_PATH "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}")
set(DOXYGEN_USE_MDFILE_AS_MAINPAGE "${PROJECT_SOURCE_DIR}/README.md")
# Not for users: details, and what an awaiter has for the language alone.
set(DOXYGEN_EXCLUDE_PATTERNS */detail/*)
set(DOXYGEN_EXCLUDE_SYMBOLS *::detail *::detail::* asyncverbs::ManualNotifier::Readable)
# A move that does what every move does has no doc block; the class says what is left. And what is in
# an inline namespace is shown as users name it.
set(DOXYGEN_FILTER_PATTERNS
    "*.hpp=sed -E -e /noexcept.=.default.$/s/.*// -e s/::inline.[A-Z_]+//")
set(DOXYGEN_JAVADOC_AUTOBRIEF YES)
set(DOXYGEN_BUILTIN_STL_SUPPORT YES)
set(DOXYGEN_EXTRACT_ALL NO)
set(DOXYGEN_HAVE_DOT NO)
set(DOXYGEN_QUIET YES)
set(DOXYGEN_WARNINGS YES)
set(DOXYGEN_WARN_AS_ERROR FAIL_ON_WARNINGS)
doxygen_add_docs(docs README.md tests/README.md include WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
