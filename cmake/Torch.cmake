# Finds Torch and decides about the CUDA kernels, by the same file as setup.py. Sets ADAPTERX_WITH_CUDA and, where it is true,
# ADAPTERX_CUDA_{VERSION,INCLUDE_DIRS,LIBRARIES,ARCHITECTURES,CMAKE_ARCHITECTURES}.
find_package(Python REQUIRED COMPONENTS Interpreter)
if(NOT Torch_DIR AND NOT CMAKE_PREFIX_PATH)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "import torch; print(torch.utils.cmake_prefix_path)"
                  OUTPUT_VARIABLE CMAKE_PREFIX_PATH OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
find_file(ADAPTERX_TORCH_CONFIG TorchConfig.cmake HINTS ${Torch_DIR} ${CMAKE_PREFIX_PATH}
          PATH_SUFFIXES Torch share/cmake/Torch NO_DEFAULT_PATH)
if(NOT ADAPTERX_TORCH_CONFIG)
  message(FATAL_ERROR "adapterx: TorchConfig.cmake not found in Torch_DIR (${Torch_DIR}) or CMAKE_PREFIX_PATH (${CMAKE_PREFIX_PATH}); "
          "set -DCMAKE_PREFIX_PATH=$(python -c 'import torch; print(torch.utils.cmake_prefix_path)')")
endif()
get_filename_component(ADAPTERX_TORCH "${ADAPTERX_TORCH_CONFIG}/../../../.." ABSOLUTE)

execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/cuda_toolkit.py --setting ${ADAPTERX_CUDA} --torch ${ADAPTERX_TORCH}
  RESULT_VARIABLE ADAPTERX_DECISION_FAILED OUTPUT_VARIABLE ADAPTERX_DECISION ERROR_VARIABLE ADAPTERX_DECISION_ERROR)
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
# Torch's own search for CUDA knows neither the toolkit in pip's packages nor libraries with versioned names, fails where
# there is none even if no kernel is built, and adds flags to every CUDA file. It leaves off where this target exists.
if(NOT TARGET torch::cudart)
  add_library(torch::cudart INTERFACE IMPORTED)
endif()
find_package(Torch REQUIRED)
