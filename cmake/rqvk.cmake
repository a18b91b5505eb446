# rqvk_library(NAME SOURCES... [LINK targets...]): a static library of one room.
function(rqvk_library name)
    cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
    add_library(${name} STATIC ${A_SOURCES})
    target_link_libraries(${name} PUBLIC ${A_LINK})
endfunction()

# rqvk_program(NAME SOURCES... LINK targets...): an installed command-line program.
function(rqvk_program name)
    cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE ${A_LINK})
    set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
    install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# rqvk_test(NAME SOURCES... LINK targets... [LABELS ...] [TIMEOUT seconds]): a cmocka program run by ctest.
# Tests find their data through RQVK_TEST_DATA (the folder tests/data of the repository).
function(rqvk_test name)
    cmake_parse_arguments(A "" "TIMEOUT" "SOURCES;LINK;LABELS;ARGS" ${ARGN})
    if(NOT RQVK_TESTS)
        return()
    endif()
    add_executable(${name} ${A_SOURCES})
    target_link_libraries(${name} PRIVATE ${A_LINK} cmocka)
    target_compile_definitions(${name} PRIVATE RQVK_TEST_DATA="${CMAKE_SOURCE_DIR}/tests/data")
    if(NOT A_TIMEOUT)
        set(A_TIMEOUT 120)
    endif()
    add_test(NAME ${name} COMMAND ${name} ${A_ARGS})
    set_tests_properties(${name} PROPERTIES TIMEOUT ${A_TIMEOUT} LABELS "${A_LABELS}")
endfunction()

# rqvk_vulkan_test(NAME [FULL] [AS suffix] [ARGS...]): the program NAME over Vulkan (llvmpipe where there is no card), with the
# validation layers on and a pipeline cache in the build folder; only in builds with Vulkan. FULL: takes long, and runs
# under its own label. A machine without a driver leaves it out, unless RQVK_VK_REQUIRED is set.
function(rqvk_vulkan_test name)
    cmake_parse_arguments(A "FULL" "AS" "ARGS" ${ARGN})
    if(NOT RQVK_TESTS OR NOT RQVK_VULKAN)
        return()
    endif()
    set(test ${name}_vulkan)
    if(A_AS)
        string(APPEND test _${A_AS})
    endif()
    set(labels vulkan)
    set(seconds 900)
    if(A_FULL)
        set(test ${test}_full)
        list(APPEND labels full)
        set(seconds 1800)
    endif()
    add_test(NAME ${test} COMMAND ${name} ${A_ARGS})
    set_tests_properties(${test} PROPERTIES TIMEOUT ${seconds} LABELS "${labels}" SKIP_RETURN_CODE 77
                         ENVIRONMENT "RQVK_VK_VALIDATE=1;XDG_CACHE_HOME=${CMAKE_BINARY_DIR}")
endfunction()

# rqvk_fuzzer(NAME SOURCES... LINK targets...): a libFuzzer program, only with RQVK_FUZZ and clang.
function(rqvk_fuzzer name)
    cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
    if(RQVK_FUZZ)
        add_executable(${name} ${A_SOURCES})
        target_link_libraries(${name} PRIVATE ${A_LINK})
        target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
        target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    endif()
endfunction()
