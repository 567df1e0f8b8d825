# Copies HEADER to OUTPUT and replaces the text in the file FROM by the text in the file TO. The text
# must occur exactly once: a mutation that no longer applies must be repaired.
file(READ "${HEADER}" header)
file(READ "${FROM}" from)
file(READ "${TO}" to)

string(FIND "${header}" "${from}" first)
string(FIND "${header}" "${from}" last REVERSE)
if(first EQUAL -1 OR NOT first EQUAL last)
    message(FATAL_ERROR "${OUTPUT}: this text does not occur exactly once in ${HEADER}:\n${from}")
endif()
string(REPLACE "${from}" "${to}" header "${header}")
file(WRITE "${OUTPUT}" "${header}")
