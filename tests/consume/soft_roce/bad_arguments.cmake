# What asyncverbs_add_soft_roce_test() refuses, and what it says. MODULE is the file that defines it.
# Each call is made by a CMake of its own, which gets its ARGUMENTS and ends by the error.
if(DEFINED ARGUMENTS)
    include("${MODULE}")
    cmake_language(EVAL CODE "asyncverbs_add_soft_roce_test(${ARGUMENTS})")
    return()
endif()

function(expect_error arguments message)
    execute_process(
        COMMAND ${CMAKE_COMMAND} "-DMODULE=${MODULE}" "-DARGUMENTS=${arguments}" -P "${CMAKE_SCRIPT_MODE_FILE}"
        RESULT_VARIABLE status ERROR_VARIABLE output)
    string(REGEX REPLACE "[ \n]+" " " output "${output}")
    string(FIND "${output}" " asyncverbs_add_soft_roce_test: ${message} Call Stack" found)
    if(status EQUAL 0 OR found EQUAL -1)
        message(SEND_ERROR "expected \"${message}\" for \"${arguments}\", got: ${output}")
    endif()
endfunction()

expect_error("COMMAND program" "NAME is missing")
expect_error("NAME test" "COMMAND is missing")
expect_error("NAME test COMMAND" "no value for: COMMAND")
expect_error("NAME test COMMAND program DEVICES" "no value for: DEVICES")
expect_error("WORKERS 2 NAME test COMMAND program" "unknown arguments: WORKERS;2")
expect_error("NAME test COMMAND program GUESTS 2 2" "unknown arguments: 2")
expect_error("NAME test COMMAND program \"\" last" "an argument of the command of test is empty")
expect_error("NAME test COMMAND program DEVICES 0" "DEVICES takes 1 to 8, not \"0\"")
expect_error("NAME test COMMAND program DEVICES 9" "DEVICES takes 1 to 8, not \"9\"")
expect_error("NAME test COMMAND program GUESTS two" "GUESTS takes 1 to 8, not \"two\"")
expect_error("NAME test COMMAND program TIMEOUT 0" "TIMEOUT takes whole seconds, not \"0\"")
expect_error("NAME test COMMAND program TIMEOUT 1.5" "TIMEOUT takes whole seconds, not \"1.5\"")
expect_error("NAME test COMMAND program GUESTS 2 DETERMINISTIC"
    "DETERMINISTIC takes one guest: each has its own clock")
