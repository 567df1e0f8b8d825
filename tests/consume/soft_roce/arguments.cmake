# Tests how asyncverbs_add_soft_roce_test() translates its arguments, and which arguments it rejects.
# MODULE is the file that defines the function. A separate cmake process makes each call. It gets the
# call's ARGUMENTS and prints the words of the test's command.
if(DEFINED ARGUMENTS)
    function(add_test)
        math(EXPR last "${ARGC} - 1")
        foreach(index RANGE 3 ${last})
            message("[${ARGV${index}}]")
        endforeach()
    endfunction()
    function(set_tests_properties)
        message("${ARGN}")
    endfunction()
    include("${MODULE}")
    cmake_language(EVAL CODE "asyncverbs_add_soft_roce_test(${ARGUMENTS})")
    return()
endif()

function(call arguments)
    execute_process(
        COMMAND ${CMAKE_COMMAND} "-DMODULE=${MODULE}" "-DARGUMENTS=${arguments}" -P "${CMAKE_SCRIPT_MODE_FILE}"
        RESULT_VARIABLE status ERROR_VARIABLE output)
    string(REGEX REPLACE "[ \n]+" " " output "${output}")
    set(status "${status}" PARENT_SCOPE)
    set(output "${output}" PARENT_SCOPE)
endfunction()

function(expect_test arguments words properties)
    call("${arguments}")
    string(FIND "${output}" "${words} " has_words)
    string(FIND "${output}" "${properties}" has_properties)
    if(NOT status EQUAL 0 OR has_words EQUAL -1 OR has_properties EQUAL -1)
        message(SEND_ERROR "expected \"${words}\", \"${properties}\" for \"${arguments}\", got: ${output}")
    endif()
endfunction()

function(expect_error arguments message)
    call("${arguments}")
    string(FIND "${output}" " asyncverbs_add_soft_roce_test: ${message} Call Stack" found)
    if(status EQUAL 0 OR found EQUAL -1)
        message(SEND_ERROR "expected \"${message}\" for \"${arguments}\", got: ${output}")
    endif()
endfunction()

expect_test("NAME test COMMAND /bin/sh -c \"a b; c\""
    "[--devices] [1] [--guests] [1] [--timeout] [600] [--] [/bin/sh] [-c] [a b; c]"
    "test;PROPERTIES;LABELS;soft_roce;PROCESSORS;1;TIMEOUT;1200")
expect_test("COMMAND /bin/true DEVICES 2 GUESTS 3 TIMEOUT 60 OUTPUT out LABELS a b NAME test"
    "[--devices] [2] [--guests] [3] [--timeout] [60] [--output] [out] [--] [/bin/true]"
    "test;PROPERTIES;LABELS;soft_roce;a;b;PROCESSORS;3;TIMEOUT;660")
expect_test("DETERMINISTIC NAME test COMMAND $<TARGET_FILE:program>"
    "[--devices] [1] [--guests] [1] [--timeout] [600] [--deterministic] [--] [$<TARGET_FILE:program>]"
    "test;PROPERTIES")
expect_test("NAME test COMMAND program"
    "[--] [$<$<TARGET_EXISTS:program>:$<TARGET_FILE:program>>$<$<NOT:$<TARGET_EXISTS:program>>:program>]"
    "test;PROPERTIES")
expect_test("NAME test COMMAND /bin/true WORKING_DIRECTORY /usr"
    "[600] [--] [/bin/true]" "test;PROPERTIES;WORKING_DIRECTORY;/usr test;PROPERTIES;LABELS")

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
