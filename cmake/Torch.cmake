# Finds torch, in this order: the first of ADAPTERX_TORCHES; Torch_DIR and CMAKE_PREFIX_PATH; the packages of Python.
#   include(cmake/Torch.cmake)     sets ADAPTERX_TORCH, the folder: cmake/Cuda.cmake decides by its version
#   include(cmake/Cuda.cmake)
#   adapterx_find_torch()          the targets of torch's own package file, for C++ programs
find_package(Python REQUIRED COMPONENTS Interpreter)
if(ADAPTERX_TORCHES)
  list(GET ADAPTERX_TORCHES 0 ADAPTERX_TORCH)
else()
  find_file(ADAPTERX_TORCH_CONFIG TorchConfig.cmake HINTS ${Torch_DIR} ${CMAKE_PREFIX_PATH}
            PATH_SUFFIXES Torch share/cmake/Torch NO_DEFAULT_PATH NO_CACHE)
  if(ADAPTERX_TORCH_CONFIG)
    get_filename_component(ADAPTERX_TORCH "${ADAPTERX_TORCH_CONFIG}/../../../.." ABSOLUTE)
  else()
    execute_process(COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/find_torch.py
                    RESULT_VARIABLE ADAPTERX_NO_TORCH OUTPUT_VARIABLE ADAPTERX_TORCH ERROR_VARIABLE ADAPTERX_TORCH_ERROR
                    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
    if(ADAPTERX_NO_TORCH)
      message(FATAL_ERROR "adapterx: ${ADAPTERX_TORCH_ERROR}; for C++ programs, Torch_DIR or CMAKE_PREFIX_PATH may name a torch "
              "(looked for TorchConfig.cmake in: ${Torch_DIR} ${CMAKE_PREFIX_PATH})")
    endif()
  endif()
endif()

macro(adapterx_find_torch)
  # Torch's own search for CUDA knows neither the toolkit in pip's packages nor libraries with versioned names, fails where
  # there is none even if no kernel is built, and adds flags to every CUDA file. It leaves off where this target exists.
  if(NOT TARGET torch::cudart)
    add_library(torch::cudart INTERFACE IMPORTED)
  endif()
  find_package(Torch REQUIRED HINTS ${ADAPTERX_TORCH}/share/cmake/Torch)
endmacro()
