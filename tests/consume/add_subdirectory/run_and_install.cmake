# Runs in the build tree of a project that vendors the library. The project installs only its own files.
execute_process(COMMAND ./consumer COMMAND_ERROR_IS_FATAL ANY)
file(REMOVE_RECURSE installed)
execute_process(COMMAND ${CMAKE_COMMAND} --install . --prefix installed COMMAND_ERROR_IS_FATAL ANY)
file(GLOB_RECURSE installed RELATIVE "${CMAKE_CURRENT_BINARY_DIR}/installed" installed/*)
if(NOT installed STREQUAL "bin/consumer")
    message(FATAL_ERROR "installed with the consumer: ${installed}")
endif()
