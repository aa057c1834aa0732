# The libraries of the Python package, one for each torch that it shall run under: libadapterx-torch<major>.<minor>.so, of
# which adapterx/ops.py loads the one for the torch at hand. What they are made of is the same; torch's C++ interface
# changes from minor to minor. Torch's package file is not used: it finds one torch, and here there may be several.

# Sets the variable to <major>.<minor> of the torch in a folder.
function(adapterx_torch_minor folder variable)
  file(STRINGS ${folder}/version.py version REGEX "^__version__ = ")
  if(NOT version MATCHES "'([0-9]+\\.[0-9]+)")
    message(FATAL_ERROR "adapterx: ADAPTERX_TORCHES must name folders of torch (with version.py), got ${folder}")
  endif()
  set(${variable} ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

function(adapterx_python_library torch)
  adapterx_torch_minor(${torch} minor)
  set(target adapterx-torch${minor})
  adapterx_operators(${target} MODULE)
  target_sources(${target} PRIVATE csrc/package/older_glibc.cpp)
  target_include_directories(${target} SYSTEM PRIVATE ${torch}/include ${torch}/include/torch/csrc/api/include)
  set(names torch torch_cpu c10)
  if(ADAPTERX_WITH_CUDA)
    list(APPEND names torch_cuda c10_cuda)
  endif()
  foreach(name IN LISTS names)
    target_link_libraries(${target} PRIVATE ${torch}/lib/${CMAKE_SHARED_LIBRARY_PREFIX}${name}${CMAKE_SHARED_LIBRARY_SUFFIX})
  endforeach()
  # No path of this machine in it: torch is in the process before the library is loaded.
  set_target_properties(${target} PROPERTIES SUFFIX .so SKIP_BUILD_RPATH ON)
  add_dependencies(adapterx_python ${target})
  # An editable install has its library beside the sources. Renamed, not written into: a process that has the old one
  # mapped keeps it.
  if(SKBUILD_STATE STREQUAL "editable")
    install(CODE "file(COPY_FILE \"$<TARGET_FILE:${target}>\" \"${PROJECT_SOURCE_DIR}/adapterx/$<TARGET_FILE_NAME:${target}>.new\")
      file(RENAME \"${PROJECT_SOURCE_DIR}/adapterx/$<TARGET_FILE_NAME:${target}>.new\" \"${PROJECT_SOURCE_DIR}/adapterx/$<TARGET_FILE_NAME:${target}>\")"
      COMPONENT python)
  else()
    install(TARGETS ${target} LIBRARY DESTINATION adapterx COMPONENT python)
  endif()
endfunction()

if(NOT ADAPTERX_TORCHES)
  set(ADAPTERX_TORCHES ${ADAPTERX_TORCH})
endif()
list(LENGTH ADAPTERX_TORCHES ADAPTERX_NUM_TORCHES)
if(ADAPTERX_WITH_CUDA AND ADAPTERX_NUM_TORCHES GREATER 1)
  message(FATAL_ERROR "adapterx: ADAPTERX_CUDA must be OFF for several torches in ADAPTERX_TORCHES, got ${ADAPTERX_CUDA}")
endif()
if(SKBUILD_STATE STREQUAL "editable")
  # Python reads the folders in such a file when it starts.
  file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/adapterx_source.pth "${PROJECT_SOURCE_DIR}\n")
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/adapterx_source.pth DESTINATION ${SKBUILD_PLATLIB_DIR} COMPONENT python)
endif()
add_custom_target(adapterx_python ALL)
foreach(torch IN LISTS ADAPTERX_TORCHES)
  adapterx_python_library(${torch})
endforeach()
