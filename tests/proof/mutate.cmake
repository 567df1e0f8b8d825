# Writes a copy of HEADER to OUTPUT in which the text of FROM, a file, is replaced by that of TO.
# It must be there exactly once: a mutation that no longer applies has to be mended, not skipped.
file(READ "${HEADER}" header)
file(READ "${FROM}" from)
file(READ "${TO}" to)

string(FIND "${header}" "${from}" first)
string(FIND "${header}" "${from}" last REVERSE)
if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "${OUTPUT}: this is not exactly once in ${HEADER}:\n${from}")
endif()
string(REPLACE "${from}" "${to}" header "${header}")
file(WRITE "${OUTPUT}" "${header}")
