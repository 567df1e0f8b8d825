# Read by cpack whenever it packs: into the source package goes what git tracks, without CI's files,
# or, where the source is such a package itself, all but what is built in it.
if(CPACK_INSTALL_CMAKE_PROJECTS)
    return() # It is the package of what is installed.
endif()

set(ignored .git .ci build)
if(EXISTS "${CPACK_ASYNCVERBS_SOURCE_DIR}/.git")
    execute_process(
        COMMAND git -C "${CPACK_ASYNCVERBS_SOURCE_DIR}" -c core.quotePath=off ls-files --others --directory
        OUTPUT_VARIABLE untracked OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
    string(REPLACE "\n" ";" untracked "${untracked}")
    list(APPEND ignored ${untracked})
endif()
foreach(path IN LISTS ignored)
    string(REGEX REPLACE "/$" "" path "${CPACK_ASYNCVERBS_SOURCE_DIR}/${path}")
    string(REGEX REPLACE "([][+.*()^$?|\\\\])" "\\\\\\1" path "${path}")
    list(APPEND CPACK_IGNORE_FILES "^${path}(/|$)")
endforeach()
