# asyncverbs_add_adapter(NAME PACKAGES package… LINK library… HEADERS header…)
#
# Adds the target asyncverbs::NAME for headers that adapt the library to a third-party event loop. If
# a package of that loop is not found, it prints that the target is left out. The target is installed
# as the component NAME: find_package(asyncverbs COMPONENTS NAME) finds the same packages again. A
# module next to this file, or the package's own configuration, finds each package.
if(POLICY CMP0167)
    cmake_policy(SET CMP0167 NEW) # use Boost's own package configuration
endif()
function(asyncverbs_add_adapter name)
    cmake_parse_arguments(PARSE_ARGV 1 adapter "" "" "PACKAGES;LINK;HEADERS")
    foreach(package IN LISTS adapter_PACKAGES)
        find_package(${package} QUIET)
        if(NOT ${package}_FOUND)
            message(STATUS "asyncverbs::${name} is left out: ${package} was not found")
            return()
        endif()
    endforeach()
    set(target asyncverbs_${name})
    add_library(${target} INTERFACE)
    add_library(asyncverbs::${name} ALIAS ${target})
    target_link_libraries(${target} INTERFACE asyncverbs ${adapter_LINK})
    target_sources(${target} INTERFACE FILE_SET HEADERS BASE_DIRS include FILES ${adapter_HEADERS})
    set_target_properties(${target} PROPERTIES
        EXPORT_NAME ${name} ASYNCVERBS_PACKAGES "${adapter_PACKAGES}")
    set_property(DIRECTORY APPEND PROPERTY ASYNCVERBS_ADAPTERS ${name})
endfunction()
