# cmake -DIN=file -DOUT=file.inc -P embed.cmake: the bytes of a file as the elements of a C array.
file(READ ${IN} hex HEX)
string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
string(REGEX REPLACE "(................................................................................)" "\\1\n"
       bytes "${bytes}")
file(WRITE ${OUT} "${bytes}\n")
