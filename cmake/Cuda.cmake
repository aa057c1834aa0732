# Decides about the CUDA kernels by cuda_toolkit.py; with ADAPTERX_TORCH set, the toolkit must be that torch's. Where the option
# ADAPTERX_CUDA is AUTO, the environment variable of that name (1, 0 or nothing) decides; CUDA_HOME and TORCH_CUDA_ARCH_LIST
# are read there too.
# Sets ADAPTERX_WITH_CUDA and, where it is true, ADAPTERX_CUDA_{VERSION,INCLUDE_DIRS,LIBRARIES,ARCHITECTURES,CMAKE_ARCHITECTURES}.
find_package(Python REQUIRED COMPONENTS Interpreter)
set(ADAPTERX_CUDA_SETTING ${ADAPTERX_CUDA})
if(ADAPTERX_CUDA STREQUAL "AUTO" AND NOT "$ENV{ADAPTERX_CUDA}" STREQUAL "")
  set(ADAPTERX_CUDA_SETTING $ENV{ADAPTERX_CUDA})
endif()
set(ADAPTERX_DECIDE ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cuda_toolkit.py --setting ${ADAPTERX_CUDA_SETTING})
if(ADAPTERX_TORCH)
  list(APPEND ADAPTERX_DECIDE --torch ${ADAPTERX_TORCH})
endif()
execute_process(COMMAND ${ADAPTERX_DECIDE} RESULT_VARIABLE ADAPTERX_DECISION_FAILED OUTPUT_VARIABLE ADAPTERX_DECISION
                ERROR_VARIABLE ADAPTERX_DECISION_ERROR)
if(ADAPTERX_DECISION_FAILED)
  message(FATAL_ERROR "adapterx: ${ADAPTERX_DECISION_ERROR}")
endif()
cmake_language(EVAL CODE "${ADAPTERX_DECISION}")
message(STATUS "adapterx: building the ${ADAPTERX_CUDA_MESSAGE}")

if(ADAPTERX_WITH_CUDA)
  set(CMAKE_CUDA_COMPILER "${ADAPTERX_CUDA_COMPILER}")
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # the target names its own
  # CMake tries the compiler by linking a program, for which the one in pip's packages looks in folders that are not there.
  list(GET ADAPTERX_CUDA_LIBRARIES 0 ADAPTERX_CUDA_RUNTIME)
  get_filename_component(ADAPTERX_CUDA_RUNTIME_DIR "${ADAPTERX_CUDA_RUNTIME}" DIRECTORY)
  set(ENV{LIBRARY_PATH} "${ADAPTERX_CUDA_RUNTIME_DIR}:$ENV{LIBRARY_PATH}")
  enable_language(CUDA)
endif()
