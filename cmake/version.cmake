# Sets asyncverbs_version to the version in include/asyncverbs/version.hpp, as major.minor.patch.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../include/asyncverbs/version.hpp" asyncverbs_version
    REGEX "^#define ASYNCVERBS_VERSION [0-9]+$")
string(REGEX MATCH "[0-9]+$" asyncverbs_version "${asyncverbs_version}")
math(EXPR asyncverbs_major "${asyncverbs_version} / 10000")
math(EXPR asyncverbs_minor "${asyncverbs_version} / 100 % 100")
math(EXPR asyncverbs_patch "${asyncverbs_version} % 100")
set(asyncverbs_version "${asyncverbs_major}.${asyncverbs_minor}.${asyncverbs_patch}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
    "${CMAKE_CURRENT_LIST_DIR}/../include/asyncverbs/version.hpp")
