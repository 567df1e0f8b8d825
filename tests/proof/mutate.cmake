# Writes a copy of HEADER to OUTPUT in which the text in the file FROM is replaced by that in TO.
# The text must be there exactly once: a mutation that no longer applies must be repaired.
file(READ "${HEADER}" header)
file(READ "${FROM}" from)
file(READ "${TO}" to)

string(FIND "${header}" "${from}" first)
string(FIND "${header}" "${from}" last REVERSE)
if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "${OUTPUT}: this text is not exactly once in ${HEADER}:\n${from}")
endif()
string(REPLACE "${from}" "${to}" header "${header}")
file(WRITE "${OUTPUT}" "${header}")
