// All that the implementation takes from outside its own folder. An isa_*.cpp includes it before it sets the target of its
// instruction set: inline functions of these headers must stay runnable on every machine, for the linker may keep any
// file's copy of them. A header of this folder that needs another one from outside adds it here.
#pragma once

#ifdef ADAPTERX_ISA
#error "outside.h must be included before the target is set"
#endif

#include <cstddef>
#include <cstdint>
#include <utility>

#include "../../problem.h"
#include "../dispatch.h"
#include "../scratch.h"
#include "../sorted_tokens.h"

#ifdef ADAPTERX_X86
#include <immintrin.h>
#endif
