# The program in the README is cut from an example that compiles. README, EXAMPLE: the two files.
file(READ "${README}" readme)
file(READ "${EXAMPLE}" example)
string(REGEX MATCH "// \\[readme\\]\n(.*)// \\[/readme\\]" cut "${example}")
set(program "```cpp\n${CMAKE_MATCH_1}```")
string(FIND "${readme}" "${program}" found)
if(cut STREQUAL "" OR found EQUAL -1)
    message(FATAL_ERROR "${README} does not show the program between the marks of ${EXAMPLE}")
endif()
