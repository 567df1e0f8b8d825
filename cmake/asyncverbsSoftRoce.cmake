# asyncverbs_add_soft_roce_test(): a CTest test with RDMA devices on any machine, including CI.
#
#   asyncverbs_add_soft_roce_test(NAME <name> COMMAND <command> [<argument>...]
#       [PROVIDER <name>] [DEVICES <number>] [GUESTS <number>] [TIMEOUT <seconds>]
#       [OUTPUT <directory>] [WORKING_DIRECTORY <directory>] [DETERMINISTIC] [LABELS <label>...])
#
# Adds a test that runs the command with soft-roce/run: on the host's own RDMA devices if they are
# active, otherwise with soft-RoCE devices in an emulated guest that sees the host's files. The
# command finds its device in RDMA_DEVICE, RDMA_PORT, RDMA_GID_INDEX and RDMA_ADDRESS. `run --help`
# explains the environment and the options in full. The first test on a machine installs missing
# packages, if it has the permission, and fetches a kernel.
#
# NAME, COMMAND, WORKING_DIRECTORY
#                 As for add_test(): the command may be a target, and generator expressions are
#                 expanded. An argument cannot be empty or a keyword of this function.
# PROVIDER        The kind of device: rxe (soft-RoCE, the default) or siw (soft-iWARP).
# DEVICES         The number of devices for the command, 1 to 8 (1). RDMA_DEVICES contains their
#                 names.
# GUESTS          The number of guests, 1 to 8 (1), that run the command at the same time on one
#                 virtual link. The command finds the number of its guest in SOFT_ROCE_GUEST and the
#                 other guests in RDMA_PEER_ADDRESSES.
# TIMEOUT         Seconds until the command is ended and the test fails (600). The boot of the guest
#                 is included.
# OUTPUT          Files that the command writes below this directory are kept. All other files are
#                 lost when the guest ends. A relative path starts at the test's working directory.
# DETERMINISTIC   Reproducible time, for measurements: the clock counts instructions.
# LABELS          Labels of the test in addition to soft_roce.
#
# Set other properties as for any test: ENVIRONMENT, SKIP_RETURN_CODE and so on.

cmake_policy(VERSION 3.23) # do not depend on the including project's version

function(asyncverbs_add_soft_roce_test)
    set(function "asyncverbs_add_soft_roce_test")
    cmake_parse_arguments(PARSE_ARGV 0 arg
        "DETERMINISTIC" "NAME;PROVIDER;DEVICES;GUESTS;TIMEOUT;OUTPUT;WORKING_DIRECTORY"
        "COMMAND;LABELS")
    if(DEFINED arg_UNPARSED_ARGUMENTS)
        message(FATAL_ERROR "${function}: unknown arguments: ${arg_UNPARSED_ARGUMENTS}")
    endif()
    if(DEFINED arg_KEYWORDS_MISSING_VALUES)
        message(FATAL_ERROR "${function}: no value for: ${arg_KEYWORDS_MISSING_VALUES}")
    endif()
    foreach(required NAME COMMAND)
        if("${arg_${required}}" STREQUAL "")
            message(FATAL_ERROR "${function}: ${required} is missing")
        endif()
    endforeach()
    if(NOT DEFINED arg_PROVIDER)
        set(arg_PROVIDER rxe)
    elseif(NOT arg_PROVIDER MATCHES "^(rxe|siw)$")
        message(FATAL_ERROR "${function}: PROVIDER takes rxe or siw, not \"${arg_PROVIDER}\"")
    endif()
    foreach(number DEVICES GUESTS)
        if(NOT DEFINED arg_${number})
            set(arg_${number} 1)
        elseif(NOT arg_${number} MATCHES "^[1-8]$")
            message(FATAL_ERROR "${function}: ${number} takes 1 to 8, not \"${arg_${number}}\"")
        endif()
    endforeach()
    if(NOT DEFINED arg_TIMEOUT)
        set(arg_TIMEOUT 600)
    elseif(NOT arg_TIMEOUT MATCHES "^[1-9][0-9]*$")
        message(FATAL_ERROR "${function}: TIMEOUT takes whole seconds, not \"${arg_TIMEOUT}\"")
    endif()
    if(arg_DETERMINISTIC AND arg_GUESTS GREATER 1)
        message(FATAL_ERROR "${function}: DETERMINISTIC takes one guest: each has its own clock")
    endif()

    set(options --provider ${arg_PROVIDER} --devices ${arg_DEVICES} --guests ${arg_GUESTS} --timeout ${arg_TIMEOUT})
    if(DEFINED arg_OUTPUT)
        list(APPEND options --output "${arg_OUTPUT}")
    endif()
    if(arg_DETERMINISTIC)
        list(APPEND options --deterministic)
    endif()

    # add_test() replaces a target by its path only in its own first word, so do it here. The target
    # may also be defined later.
    set(command "")
    foreach(word IN LISTS arg_COMMAND)
        if(word STREQUAL "")
            message(FATAL_ERROR "${function}: an argument of the command of ${arg_NAME} is empty")
        elseif(command STREQUAL "" AND word MATCHES "^[A-Za-z0-9_.+:-]+$")
            set(exists "$<TARGET_EXISTS:${word}>")
            set(word "$<${exists}:$<TARGET_FILE:${word}>>$<$<NOT:${exists}>:${word}>")
        endif()
        string(REPLACE ";" "\\;" word "${word}") # keep it one word
        list(APPEND command "${word}")
    endforeach()

    add_test(NAME "${arg_NAME}"
        COMMAND "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/soft-roce/run" ${options} -- ${command})
    if(DEFINED arg_WORKING_DIRECTORY)
        set_tests_properties("${arg_NAME}" PROPERTIES WORKING_DIRECTORY "${arg_WORKING_DIRECTORY}")
    endif()
    # CTest's timeout is later than the runner's, because the runner's error message says more. The
    # runner's timeout excludes the time to install packages and fetch a kernel. The first test on a
    # machine does that, and the tests that run beside it wait for it.
    math(EXPR timeout "${arg_TIMEOUT} + 600")
    list(PREPEND arg_LABELS soft_roce)
    set_tests_properties("${arg_NAME}" PROPERTIES
        LABELS "${arg_LABELS}" PROCESSORS ${arg_GUESTS} TIMEOUT ${timeout})
endfunction()
