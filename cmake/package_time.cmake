# cpack reads this file on each run. The source package contains all files that git tracks, except
# CI's files. If the source is itself an unpacked source package, the new package contains everything
# except build output.
if(CPACK_INSTALL_CMAKE_PROJECTS)
    return() # a binary package, of the installed files
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
