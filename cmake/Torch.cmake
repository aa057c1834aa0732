# Finds Torch. First where it is, for cmake/Cuda.cmake decides by its version before Torch's own package file runs:
#   include(cmake/Torch.cmake)     sets ADAPTERX_TORCH, the folder
#   include(cmake/Cuda.cmake)
#   adapterx_find_torch()
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

macro(adapterx_find_torch)
  # Torch's own search for CUDA knows neither the toolkit in pip's packages nor libraries with versioned names, fails where
  # there is none even if no kernel is built, and adds flags to every CUDA file. It leaves off where this target exists.
  if(NOT TARGET torch::cudart)
    add_library(torch::cudart INTERFACE IMPORTED)
  endif()
  find_package(Torch REQUIRED)
endmacro()
